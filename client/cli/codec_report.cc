#include "client/cli/codec_report.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/cli/json.h"
#include "client/cli/quantity.h"
#include "client/table.h"

namespace kvdepot::cli {
namespace {

using google::protobuf::ListValue;
using google::protobuf::Struct;

constexpr absl::string_view kBaselineCodec = "kivi";

ErrorPoint PointOf(const TensorFigures& tensor) { return {tensor.bits, tensor.attention_error}; }

// What a codec was measured at.
struct Curves {
  std::vector<ErrorPoint> k;
  std::vector<ErrorPoint> v;
  std::vector<ErrorPoint> both;
};

Curves CurvesOf(const CodecReport& report, absl::string_view codec) {
  Curves curves;
  for (const CodecRow& row : report.rows) {
    if (row.setting.codec != codec) continue;
    const TrialFigures mean = MeanOverLayers(row.layers);
    curves.k.push_back(PointOf(mean.k));
    curves.v.push_back(PointOf(mean.v));
    curves.both.push_back({mean.bits, mean.attention_error});
  }
  return curves;
}

std::vector<bool> NotBeatenRows(const CodecReport& report) {
  std::vector<ErrorPoint> points;
  for (const CodecRow& row : report.rows) {
    const TrialFigures mean = MeanOverLayers(row.layers);
    points.push_back({mean.bits, mean.attention_error});
  }
  return NotBeaten(points);
}

std::vector<std::vector<double>> Repeats(const CodecRow& row,
                                         std::vector<double> TrialFigures::*seconds) {
  std::vector<std::vector<double>> repeats;
  for (const TrialFigures& layer : row.layers) repeats.push_back(layer.*seconds);
  return repeats;
}

absl::optional<CodecRate> EncodeRate(const CodecReport& report, const CodecRow& row) {
  return RateOf(report.bf16_bytes, Repeats(row, &TrialFigures::encode_seconds));
}
absl::optional<CodecRate> DecodeRate(const CodecReport& report, const CodecRow& row) {
  return RateOf(report.bf16_bytes, Repeats(row, &TrialFigures::decode_seconds));
}

std::string BitsText(double bits) { return absl::StrFormat("%.3f", bits); }
std::string ErrorText(double error) {
  return error >= 0.001 ? absl::StrFormat("%.4f", error) : absl::StrFormat("%.1e", error);
}
std::string RateCell(const absl::optional<CodecRate>& rate) {
  if (!rate) return "-";
  return absl::StrFormat("%.3g (%.2f)", rate->bytes_per_second / 1e9, rate->spread);
}
std::string RatioText(const absl::optional<SizeRatio>& ratio) {
  if (!ratio) return "-";
  return absl::StrFormat("%s%.2f", ratio->is_lower_bound ? ">" : "", ratio->ratio);
}

std::string RowsText(const CodecReport& report) {
  constexpr Table::Align kRight = Table::Align::kRight;
  Table table({{"codec"},
               {"profile"},
               {"K paper", kRight},
               {"V paper", kRight},
               {"K bits", kRight},
               {"V bits", kRight},
               {"bits", kRight},
               {"session", kRight},
               {"K error", kRight},
               {"V error", kRight},
               {"attention", kRight},
               {"K alone", kRight},
               {"V alone", kRight},
               {"encode GB/s", kRight},
               {"decode GB/s", kRight},
               {""}});
  const std::vector<bool> best = NotBeatenRows(report);
  for (size_t i = 0; i < report.rows.size(); ++i) {
    const CodecRow& row = report.rows[i];
    const TrialFigures mean = MeanOverLayers(row.layers);
    std::string remark = best[i] ? "*" : "";
    if (mean.raw_segments > 0) absl::StrAppend(&remark, " ", mean.raw_segments, " raw segments");
    table.AddRow({row.setting.codec, row.setting.profile, BitsText(mean.k.paper_bits),
                  BitsText(mean.v.paper_bits), BitsText(mean.k.bits), BitsText(mean.v.bits),
                  BitsText(mean.bits), BitsText(mean.session_bits), ErrorText(mean.k.error),
                  ErrorText(mean.v.error), ErrorText(mean.attention_error),
                  ErrorText(mean.k.attention_error), ErrorText(mean.v.attention_error),
                  RateCell(EncodeRate(report, row)), RateCell(DecodeRate(report, row)), remark});
  }
  return table.ToString();
}

std::string EqualErrorsText(const std::vector<EqualError>& errors) {
  if (errors.empty()) return "";
  constexpr Table::Align kRight = Table::Align::kRight;
  Table table({{"codec"}, {"baseline"}, {"K", kRight}, {"V", kRight}, {"both", kRight}});
  for (const EqualError& error : errors) {
    table.AddRow({error.codec, error.baseline, RatioText(error.k_ratio), RatioText(error.v_ratio),
                  RatioText(error.ratio)});
  }
  return absl::StrCat(
      "\nHow many times smaller than KIVI at the same error of attention (K: where K alone is "
      "compressed; >: its error is smaller at all settings; -: larger at all)\n",
      table.ToString());
}

void SetTensor(const std::string& name, const TensorFigures& tensor, Struct* object) {
  SetNumber(name + "_paper_bits", tensor.paper_bits, object);
  SetNumber(name + "_bits", tensor.bits, object);
  SetNumber(name + "_error", tensor.error, object);
  SetNumber(name + "_attention_error", tensor.attention_error, object);
}

void SetFigures(const TrialFigures& figures, Struct* object) {
  SetTensor("k", figures.k, object);
  SetTensor("v", figures.v, object);
  SetNumber("bits", figures.bits, object);
  SetNumber("session_bits", figures.session_bits, object);
  SetNumber("attention_error", figures.attention_error, object);
  SetNumber("attention_error_mean", figures.attention_error_mean, object);
  SetNumber("raw_segments", figures.raw_segments, object);
}

void SetRate(const std::string& name, const absl::optional<CodecRate>& rate, Struct* object) {
  if (!rate) return;
  SetNumber(name + "_bytes_per_second", rate->bytes_per_second, object);
  SetNumber(name + "_spread", rate->spread, object);
  SetNumber(name + "_repeats", rate->repeats, object);
}

void SetRatio(const std::string& name, const absl::optional<SizeRatio>& ratio, Struct* object) {
  if (!ratio) return;
  SetNumber(name, ratio->ratio, object);
  SetBool(name + "_is_lower_bound", ratio->is_lower_bound, object);
}

void AddRows(const CodecReport& report, ListValue* rows) {
  const std::vector<bool> best = NotBeatenRows(report);
  for (size_t i = 0; i < report.rows.size(); ++i) {
    const CodecRow& row = report.rows[i];
    Struct* object = rows->add_values()->mutable_struct_value();
    SetText("codec", row.setting.codec, object);
    SetText("profile", row.setting.profile, object);
    SetFigures(MeanOverLayers(row.layers), object);
    SetBool("not_beaten", best[i], object);
    SetRate("encode", EncodeRate(report, row), object);
    SetRate("decode", DecodeRate(report, row), object);
    ListValue* layers = SetList("by_layer", object);
    for (size_t j = 0; j < row.layers.size(); ++j) {
      Struct* layer = layers->add_values()->mutable_struct_value();
      SetNumber("layer", report.layers[j], layer);
      SetFigures(row.layers[j], layer);
    }
  }
}

}  // namespace

absl::optional<CodecRate> RateOf(double bytes, const std::vector<std::vector<double>>& seconds) {
  size_t repeats = seconds.empty() ? 0 : seconds.front().size();
  for (const std::vector<double>& layer : seconds) repeats = std::min(repeats, layer.size());
  if (repeats == 0) return absl::nullopt;
  std::vector<double> totals(repeats);
  for (const std::vector<double>& layer : seconds) {
    for (size_t i = 0; i < repeats; ++i) totals[i] += layer[i];
  }
  std::sort(totals.begin(), totals.end());
  const double median = totals[repeats / 2];
  return CodecRate{bytes / median, (totals[repeats * 3 / 4] - totals[repeats / 4]) / median,
                   static_cast<int>(repeats)};
}

TrialFigures MeanOverLayers(const std::vector<TrialFigures>& layers) {
  const double part = 1.0 / static_cast<double>(layers.size());
  TrialFigures mean;
  const auto add = [part](const TensorFigures& from, TensorFigures* to) {
    to->paper_bits += part * from.paper_bits;
    to->bits += part * from.bits;
    to->error += part * from.error;
    to->attention_error += part * from.attention_error;
  };
  for (const TrialFigures& layer : layers) {
    add(layer.k, &mean.k);
    add(layer.v, &mean.v);
    mean.bits += part * layer.bits;
    mean.session_bits += part * layer.session_bits;
    mean.attention_error += part * layer.attention_error;
    mean.attention_error_mean += part * layer.attention_error_mean;
    mean.raw_segments += layer.raw_segments;
  }
  return mean;
}

std::vector<EqualError> EqualErrors(const CodecReport& report) {
  std::vector<std::string> codecs;
  for (const CodecRow& row : report.rows) {
    if (std::find(codecs.begin(), codecs.end(), row.setting.codec) == codecs.end() &&
        row.setting.codec != kBaselineCodec) {
      codecs.push_back(row.setting.codec);
    }
  }
  std::vector<EqualError> errors;
  for (const std::string& codec : codecs) {
    const Curves curves = CurvesOf(report, codec);
    // One point is no curve.
    if (curves.both.size() < 2) continue;
    for (const CodecRow& row : report.rows) {
      if (row.setting.codec != kBaselineCodec) continue;
      const TrialFigures mean = MeanOverLayers(row.layers);
      errors.push_back({codec, absl::StrCat(row.setting.codec, " ", row.setting.profile),
                        RatioAtError(PointOf(mean.k), curves.k),
                        RatioAtError(PointOf(mean.v), curves.v),
                        RatioAtError({mean.bits, mean.attention_error}, curves.both)});
    }
  }
  return errors;
}

std::string CodecText(const CodecReport& report) {
  return absl::StrCat(
      report.model, ", ", report.layers.size() == 1 ? "layer " : "layers ",
      absl::StrJoin(report.layers, ", "), ": ", CountText(report.tokens), " tokens, ",
      CountText(report.sealed_tokens), " of them sealed; ", report.shape.kv_heads, " KV heads of ",
      report.shape.head_dim, ", ", report.queries,
      report.queries_are_drawn ? " drawn queries" : " queries", " a layer; ", report.backend,
      "\n\n", RowsText(report),
      "\nbits: of sealed tokens, all in; paper: as the PackKV paper counts; session: with exact "
      "sinks "
      "and tail.\nattention: error of its output; K alone, V alone: where only that is compressed. "
      "In brackets: spread.\n*: no other has fewer bits and less error.\n",
      EqualErrorsText(EqualErrors(report)));
}

Struct CodecJson(const CodecReport& report) {
  Struct object;
  SetText("model", report.model, &object);
  SetText("backend", report.backend, &object);
  SetNumber("tokens", report.tokens, &object);
  SetNumber("sealed_tokens", report.sealed_tokens, &object);
  SetNumber("kv_heads", report.shape.kv_heads, &object);
  SetNumber("query_heads", report.shape.query_heads, &object);
  SetNumber("head_dim", report.shape.head_dim, &object);
  ListValue* layers = SetList("layers", &object);
  for (const int layer : report.layers) layers->add_values()->set_number_value(layer);
  SetNumber("queries", report.queries, &object);
  SetBool("queries_are_drawn", report.queries_are_drawn, &object);
  AddRows(report, SetList("rows", &object));
  ListValue* errors = SetList("equal_error", &object);
  for (const EqualError& error : EqualErrors(report)) {
    Struct* item = errors->add_values()->mutable_struct_value();
    SetText("codec", error.codec, item);
    SetText("baseline", error.baseline, item);
    SetRatio("k_ratio", error.k_ratio, item);
    SetRatio("v_ratio", error.v_ratio, item);
    SetRatio("ratio", error.ratio, item);
  }
  return object;
}

}  // namespace kvdepot::cli
