// Release of the client library. Client and daemon of one minor version understand each other.
#ifndef KVDEPOT_CLIENT_VERSION_H_
#define KVDEPOT_CLIENT_VERSION_H_

namespace kvdepot {

inline constexpr char kClientVersion[] = "0.1.0";

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_VERSION_H_
