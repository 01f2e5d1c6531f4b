// A kernel that traps, for the one program that is meant to fail.
#ifndef KVDEPOT_TESTS_INTEGRATION_TRAP_H_
#define KVDEPOT_TESTS_INTEGRATION_TRAP_H_

namespace kvdepot {

// Ends this process' use of the current GPU: from then on every call of the CUDA runtime fails.
// Does nothing in a build without CUDA.
void Trap();

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_INTEGRATION_TRAP_H_
