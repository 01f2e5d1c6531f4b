// Attention of one or many sessions' queries over what they saw when the call was admitted, done in
// pieces.
#ifndef KVDEPOT_SERVER_ATTEND_BATCH_H_
#define KVDEPOT_SERVER_ATTEND_BATCH_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "gpu/backend.h"
#include "server/attend_pieces.h"
#include "server/layer.h"
#include "server/session.h"
#include "server/session_types.h"

namespace kvdepot {

// One session's queries and a view of the tokens that they see. Holds the view's extents, not the
// session.
struct AttendSubject {
  LayerShape shape;
  DType dtype = DType::kBf16;
  std::shared_ptr<const LayerCalibration> calibration;
  LayerView view;
  uint64_t view_position = 0;
  uint64_t query_position = 0;
  QueryTokens queries;
  float scale = 0;  // As asked for; 0: 1 / sqrt(head_dim).
};

// INVALID_ARGUMENT: the number of queries, or the bytes of one of their arrays, do not fit. Fields
// as in the contract ("queries.q").
absl::Status CheckQueries(const Session& session, const LayerShape& shape,
                          const QueryTokens& queries, int query_tokens_max);

// OUT_OF_RANGE naming `field` if a query at `query_position` would see tokens that left the sliding
// window.
absl::Status CheckVisible(const std::string& field, const Layer& layer, uint64_t query_position);

// What `queries`, the last of which stands at token_count - 1, see now. All checks have passed.
// Under the engine's lock.
AttendSubject ViewForQueries(const Session& session, size_t layer, float scale,
                             const QueryTokens& queries, uint64_t token_count);

class AttendBatch {
 public:
  explicit AttendBatch(uint64_t piece_row_tokens_max) : row_tokens_max_(piece_row_tokens_max) {}

  void Add(AttendSubject subject);

  // Cuts the work into pieces and makes room for the results, once all subjects are there. The
  // memory of many results takes as long as a good part of a piece.
  void Prepare();
  bool is_one_piece() const { return pieces_.size() == 1; }

  // (query token, query head, visible token) of all subjects: what the work grows with.
  uint64_t row_tokens() const;

  // Computes the next piece of what was prepared. True: pieces remain. Errors as Backend::Attend;
  // INVALID_ARGUMENT naming an item's queries.q where a logit is beyond fp32; DATA_LOSS where that
  // is, or an output is, because a value in the tail is not finite any more. On the worker; queries
  // are finite.
  absl::StatusOr<bool> RunPiece(Backend* backend);

  // Once no pieces remain.
  std::vector<AttendResult> TakeResults();

 private:
  // Where results of a slice are, in the reply or in buffers.
  struct Results {
    float* output;
    float* log_sum_exp;
    MemorySpace space;
  };
  Results ResultsOf(const QuerySlice& slice);
  AttendItem ItemOf(const QuerySlice& slice);
  absl::Status CheckResults(Backend* backend, const QuerySlice& slice);
  static size_t FirstNonFiniteLogSumExp(Backend* backend, const Results& results, size_t count);

  const uint64_t row_tokens_max_;
  std::vector<AttendSubject> subjects_;
  std::vector<AttendResult> results_;
  std::vector<AttendPiece> pieces_;
  size_t next_piece_ = 0;
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_ATTEND_BATCH_H_
