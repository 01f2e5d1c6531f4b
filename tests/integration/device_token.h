// Tokens and queries of mapped sessions (mapped_tokens.h) where a GPU reads them.
#ifndef KVDEPOT_TESTS_INTEGRATION_DEVICE_TOKEN_H_
#define KVDEPOT_TESTS_INTEGRATION_DEVICE_TOKEN_H_

#include <cstddef>

#include "client/cuda_mapped_stream.h"
#include "tests/gpu/device_array.h"
#include "tests/integration/mapped_tokens.h"
#include "tests/server/services/test_daemon.h"

namespace kvdepot {

// The arrays of one token of one layer in device memory.
class DeviceToken {
 public:
  DeviceToken()
      : k_(sizeof(float) * kRowValues),
        v_(sizeof(float) * kRowValues),
        q_(sizeof(float) * kQueryValues),
        output_(kQueryValues),
        log_sum_exp_(kQueryHeads) {}

  void SetTokens(const MappedTokens& tokens) {
    k_.Set({tokens.k.begin(), tokens.k.end()});
    v_.Set({tokens.v.begin(), tokens.v.end()});
  }
  void SetQuery(const MappedQuery& query) { q_.Set({query.q().begin(), query.q().end()}); }
  CudaMappedStream::Query Of(MappedSession* session) const {
    return {session,
            reinterpret_cast<const std::byte*>(k_.data()),
            reinterpret_cast<const std::byte*>(v_.data()),
            1,
            reinterpret_cast<const std::byte*>(q_.data()),
            output_.data(),
            log_sum_exp_.data()};
  }
  // Waits for the device.
  void Get(MappedQuery* query) const { query->Set(output_.Get(), log_sum_exp_.Get()); }

 private:
  DeviceArray<char> k_;
  DeviceArray<char> v_;
  DeviceArray<char> q_;
  DeviceArray<float> output_;
  DeviceArray<float> log_sum_exp_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_INTEGRATION_DEVICE_TOKEN_H_
