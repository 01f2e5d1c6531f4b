// Every limit and every number of the engine: default, unit, reason.
#ifndef KVDEPOT_SERVER_ENGINE_OPTIONS_H_
#define KVDEPOT_SERVER_ENGINE_OPTIONS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "gpu/seal_rule.h"

namespace kvdepot {

struct EngineOptions {
  // Memory of all sessions: segments, sinks and tails, second moments of queries, calibrations but
  // those of the daemon's folder. Where the engine begins; SetBudget changes it.
  uint64_t budget_bytes = uint64_t{1} << 30;
  // What one tenant may use of it. 0: all of it.
  uint64_t tenant_quota_bytes = 0;

  // A session's record takes a few kilobytes that no budget counts, so their number is bounded.
  int sessions_per_tenant_max = 1024;
  int layers_max = 256;
  // Twice the longest context in use today.
  uint64_t tokens_per_session_max = uint64_t{1} << 21;
  // Bytes of a session's name, and of its model's.
  int name_bytes_max = 256;
  // Sessions in one page of ListSessions.
  int page_size_max = 256;

  // Query tokens of one session in one Attend: 1024 of them at 32 heads of 128 give an output of 16
  // MiB.
  int query_tokens_max = 1024;
  // Sessions in one Attend or Decode.
  int batch_sessions_max = 256;
  // Requests of one tenant that wait for the device or are on it. Each holds its tensors in host
  // memory meanwhile.
  int queued_requests_per_tenant_max = 256;
  // An Attend is cut along its query tokens into pieces of at most this many (query token, query
  // head, visible token), but of one query token at least; between pieces other requests have their
  // turn. 4 Mi are one query token of 32 heads at 128 Ki tokens, or 10 of 12 heads at 32 Ki: about
  // .03 s of one x86 core in `planes` with head_dim 128, .05 s in `raw` (fp32).
  uint64_t work_piece_row_tokens = uint64_t{1} << 22;
  // An Attend of at most this many that finds the device idle is computed by the thread that
  // brought it, which saves a hand-over of some 40 us; the limit is about half a millisecond. 0:
  // never.
  uint64_t brief_row_tokens_max = uint64_t{1} << 16;
  // K and V in one reply of Fetch; at least one token is sent.
  uint64_t fetch_bytes_max = uint64_t{4} << 20;

  // Bytes of one uploaded calibration: 128 layers of 8 heads of 128 take 1.1 MiB.
  uint64_t calibration_bytes_max = uint64_t{8} << 20;
  int calibrations_per_tenant_max = 64;

  // When tokens are sealed (gpu/seal_rule.h). Multiples of 64; what is sealed depends on these and
  // on the appends alone.
  int window_tokens = SealRule().window_tokens;
  int decode_seal_tokens = SealRule().decode_seal_tokens;
  int prompt_tokens_min = SealRule().prompt_tokens_min;
  int segment_tokens_max = SealRule().segment_tokens_max;

  // Processes of one tenant that may map sessions. Each takes two file descriptors of the daemon.
  int leases_per_tenant_max = 64;
  // A lease ends without a message for this long: as long as a writer that hangs keeps others out.
  absl::Duration lease_timeout = absl::Seconds(10);
  // Directories of one session that a lease may have without retiring them. Each holds the extents
  // that it lists, and a reader that goes on needs two.
  int directory_versions_max = 64;
  // How long a lease may keep what it was asked to unmap, because its tenant's memory was short,
  // before it is refused to map more.
  absl::Duration unmap_timeout = absl::Seconds(5);
  // Room for tokens that a mapped writer gets in every layer: at first, and at most.
  int room_tokens = 256;
  int room_tokens_max = 65536;

  // Buffers that a lease's process may have registered.
  int buffers_per_lease_max = 64;
  // What all processes of one tenant may have registered: the daemon maps it, so that it is bounded
  // by the daemon's addresses (128 TiB), not by memory.
  uint64_t buffer_bytes_per_tenant_max = uint64_t{256} << 30;

  // Every so many sealed segments one is decoded and compared with its exact tokens. 0: never. At
  // 64 the comparison costs about one part in a hundred of the sealing.
  int error_sample_interval = 64;

  // One line for each value out of its range, naming field, value and range. Empty: all are fine.
  std::vector<std::string> Problems() const;
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_ENGINE_OPTIONS_H_
