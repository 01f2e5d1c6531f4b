// kvdepot size: bytes of a model's sessions by codec and profile. Asks no daemon.
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/types/optional.h"
#include "client/cli/command.h"
#include "client/cli/daemon_flags.h"
#include "client/cli/json.h"
#include "client/cli/model_shape.h"
#include "client/cli/quantity.h"
#include "client/session_size.h"
#include "client/table.h"
#include "gpu/byte_count.h"

ABSL_FLAG(std::string, model_shape, "",
          "LAYERSxKV_HEADSxHEAD_DIM, as 28x2x128. With w4096 behind it those layers have a sliding "
          "window of so many tokens; commas join layers that differ: 40x4x256w1024,8x4x256.");
ABSL_FLAG(uint64_t, size_tokens, 32768, "Tokens of a session.");
ABSL_FLAG(uint64_t, size_decoded, 0,
          "How many of them come one by one, behind a prompt of the others.");
ABSL_FLAG(std::string, size_dtype, "bf16", "bf16, fp16 or fp32.");
ABSL_FLAG(std::string, memory_budget, "",
          "As the daemon's: 80GiB. How many sessions fit in it is shown as well.");

namespace kvdepot::cli {
namespace {

// 32 times what a daemon takes by default.
constexpr uint64_t kTokensMax = uint64_t{1} << 26;

struct Plan {
  SessionShape shape;
  TokenHistory history;
  absl::optional<uint64_t> budget_bytes;
};

// One line of the table.
struct Row {
  std::string codec;
  std::string profile;
  StorageChoice choice;
  SessionSize size = {};

  // Whether the values decide how much of it is taken.
  bool is_bound() const { return choice.codec == Codec::kPackKv; }
};

absl::StatusOr<DType> ParseDtype(const std::string& name) {
  if (name == "bf16") return DType::kBf16;
  if (name == "fp16") return DType::kFp16;
  if (name == "fp32") return DType::kFp32;
  return UsageError(absl::StrCat("--dtype: '", name, "', must be bf16, fp16 or fp32"));
}

absl::StatusOr<Plan> PlanFromFlags() {
  Plan plan;
  if (absl::GetFlag(FLAGS_model_shape).empty()) {
    return UsageError("--model-shape: missing, as 28x2x128 (layers, KV heads, head_dim)");
  }
  absl::StatusOr<std::vector<LayerGroup>> groups =
      ParseModelShape(absl::GetFlag(FLAGS_model_shape));
  if (!groups.ok()) {
    return UsageError(absl::StrCat("--model-shape: ", groups.status().message()));
  }
  plan.shape.groups = *std::move(groups);
  const absl::StatusOr<DType> dtype =
      ParseDtype(absl::AsciiStrToLower(absl::GetFlag(FLAGS_size_dtype)));
  if (!dtype.ok()) return dtype.status();
  plan.shape.dtype = *dtype;

  const uint64_t tokens = absl::GetFlag(FLAGS_size_tokens);
  const uint64_t decoded = absl::GetFlag(FLAGS_size_decoded);
  if (tokens < 1 || tokens > kTokensMax) {
    return UsageError(absl::StrCat("--tokens: ", tokens, ", must be 1..", kTokensMax));
  }
  if (decoded > tokens) {
    return UsageError(absl::StrCat("--decoded: ", decoded, ", must be at most --tokens, ", tokens));
  }
  plan.history = {tokens - decoded, decoded};

  const std::string budget = absl::GetFlag(FLAGS_memory_budget);
  if (budget.empty()) return plan;
  plan.budget_bytes = ParseByteCount(budget);
  if (!plan.budget_bytes) {
    return UsageError(absl::StrCat("--memory-budget: '", budget, "', must be ", kByteCountRange));
  }
  return plan;
}

std::vector<Row> RowsOf(const Plan& plan) {
  std::vector<Row> rows;
  rows.reserve(kProfileCount + 3);
  constexpr const char* kProfileNames[kProfileCount] = {"tiny", "compact", "balanced", "fine"};
  for (int profile = 0; profile < kProfileCount; ++profile) {
    rows.push_back({CodecName(Codec::kPlanes),
                    kProfileNames[profile],
                    {Codec::kPlanes, static_cast<Profile>(profile), {}}});
  }
  for (const bool normalize : {false, true}) {
    rows.push_back({CodecName(Codec::kPackKv),
                    normalize ? "normalize" : "defaults",
                    {Codec::kPackKv, {}, packkv::DefaultOptions(normalize)}});
  }
  rows.push_back({CodecName(Codec::kRaw), "exact", {Codec::kRaw, {}, {}}});
  for (Row& row : rows) row.size = SizeOfSession(plan.shape, plan.history, row.choice);
  return rows;
}

// Of bf16, whatever the session's own type.
double BitsPerValue(const Row& row, DType dtype) {
  const uint64_t values = row.size.logical_bytes / DTypeBytes(dtype);
  return 8 * static_cast<double>(row.size.stored_bytes) / static_cast<double>(values);
}
double RatioToBf16(const Row& row, DType dtype) { return 16 / BitsPerValue(row, dtype); }

std::string SizeText(const Plan& plan, const std::vector<Row>& rows) {
  constexpr Table::Align kRight = Table::Align::kRight;
  std::vector<Table::Column> columns = {{"CODEC"},
                                        {"PROFILE"},
                                        {"A TOKEN", kRight},
                                        {"A SESSION", kRight},
                                        {"BITS/VALUE", kRight},
                                        {"RATIO TO BF16", kRight}};
  if (plan.budget_bytes) {
    columns.push_back({absl::StrCat("SESSIONS IN ", BytesText(*plan.budget_bytes)), kRight});
  }
  Table table(columns);
  for (const Row& row : rows) {
    const char* const at_most = row.is_bound() ? "<= " : "";
    const char* const at_least = row.is_bound() ? ">= " : "";
    const double bits = BitsPerValue(row, plan.shape.dtype);
    std::vector<std::string> cells = {
        row.codec,
        row.profile,
        absl::StrCat(at_most, BytesText(static_cast<uint64_t>(std::llround(row.size.token_bytes)))),
        absl::StrCat(at_most, BytesText(row.size.stored_bytes)),
        absl::StrFormat("%s%.2f", at_most, bits),
        absl::StrFormat("%s%.2f", at_least, RatioToBf16(row, plan.shape.dtype))};
    if (plan.budget_bytes) {
      cells.push_back(
          absl::StrCat(at_least, CountText(SessionsThatFit(row.size, *plan.budget_bytes))));
    }
    table.AddRow(cells);
  }
  return table.ToString();
}

void PrintSizes(const Plan& plan, const std::vector<Row>& rows) {
  std::printf("%s, %s tokens", ModelShapeText(plan.shape.groups).c_str(),
              CountText(plan.history.prompt_tokens + plan.history.decoded_tokens).c_str());
  if (plan.history.decoded_tokens > 0) {
    std::printf(", of them %s one by one", CountText(plan.history.decoded_tokens).c_str());
  }
  std::printf("\n\n%s", SizeText(plan, rows).c_str());
  std::fputs(
      "\nA token is one more of a long prompt; a session has its exact sinks and tail, too. planes "
      "and\nraw take exactly this, packkv at most this: its values decide.\n",
      stdout);
}

void PrintSizesAsJson(const Plan& plan, const std::vector<Row>& rows) {
  google::protobuf::Struct object;
  SetText("model_shape", absl::GetFlag(FLAGS_model_shape), &object);
  SetNumber("prompt_tokens", static_cast<double>(plan.history.prompt_tokens), &object);
  SetNumber("decoded_tokens", static_cast<double>(plan.history.decoded_tokens), &object);
  if (plan.budget_bytes) {
    SetNumber("budget_bytes", static_cast<double>(*plan.budget_bytes), &object);
  }
  google::protobuf::ListValue* const list = SetList("rows", &object);
  for (const Row& row : rows) {
    google::protobuf::Struct* const entry = list->add_values()->mutable_struct_value();
    SetText("codec", row.codec, entry);
    SetText("profile", row.profile, entry);
    SetBool("is_bound", row.is_bound(), entry);
    SetNumber("token_bytes", row.size.token_bytes, entry);
    SetNumber("session_bytes", static_cast<double>(row.size.stored_bytes), entry);
    SetNumber("logical_bytes", static_cast<double>(row.size.logical_bytes), entry);
    SetNumber("bits_per_value", BitsPerValue(row, plan.shape.dtype), entry);
    SetNumber("ratio_to_bf16", RatioToBf16(row, plan.shape.dtype), entry);
    if (plan.budget_bytes) {
      SetNumber("sessions", static_cast<double>(SessionsThatFit(row.size, *plan.budget_bytes)),
                entry);
    }
  }
  PrintJson(object);
}

}  // namespace

absl::Status RunSize(const Arguments&) {
  const absl::StatusOr<Plan> plan = PlanFromFlags();
  if (!plan.ok()) return plan.status();
  const std::vector<Row> rows = RowsOf(*plan);
  if (WantsJson()) {
    PrintSizesAsJson(*plan, rows);
  } else {
    PrintSizes(*plan, rows);
  }
  return absl::OkStatus();
}

}  // namespace kvdepot::cli
