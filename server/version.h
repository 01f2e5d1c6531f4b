// The release.
#ifndef KVDEPOT_SERVER_VERSION_H_
#define KVDEPOT_SERVER_VERSION_H_

namespace kvdepot {

inline constexpr char kVersion[] = "0.1.0";

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_VERSION_H_
