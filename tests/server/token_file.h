// Tokens that tests know, and files that change under a daemon.
#ifndef KVDEPOT_TESTS_SERVER_TOKEN_FILE_H_
#define KVDEPOT_TESTS_SERVER_TOKEN_FILE_H_

#include <cstdio>
#include <fstream>
#include <string>

#include "gtest/gtest.h"

namespace kvdepot {

// alice's, and the line that lets a daemon know it (SHA-256 of "abc", from FIPS 180-2).
inline constexpr char kAliceToken[] = "abc";
inline constexpr char kAliceLine[] =
    "alice ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n";
// Somebody else's, by which alice is not known (SHA-256 of "").
inline constexpr char kBobLine[] =
    "bob e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n";

// As whoever renews certificates and tokens does it: readers see the old file or the new one.
inline void ReplaceFile(const std::string& path, const std::string& text) {
  std::ofstream(path + ".new") << text;
  ASSERT_EQ(std::rename((path + ".new").c_str(), path.c_str()), 0);
}

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_SERVER_TOKEN_FILE_H_
