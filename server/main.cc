// kvdepotd.
#include "server/daemon.h"

int main(int argc, char** argv) { return kvdepot::RunDaemon(argc, argv); }
