// A valid request changed in one field at a time: each bad value is refused by a message that
// starts with the field's path.
#include "server/services/session_convert.h"

#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "server/session_spec.h"

namespace kvdepot {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

v1::CreateSessionRequest ValidRequest() {
  v1::CreateSessionRequest request;
  request.set_name("chat");
  request.set_model("model-7b");
  request.set_dtype(v1::DTYPE_BF16);
  for (int i = 0; i < 2; ++i) {
    v1::LayerShape* layer = request.add_layers();
    layer->set_kv_heads(2);
    layer->set_query_heads(8);
    layer->set_head_dim(64);
  }
  return request;
}

using Change = std::function<void(v1::CreateSessionRequest&)>;

absl::StatusOr<SessionSpec> ConvertWith(const Change& change) {
  v1::CreateSessionRequest request = ValidRequest();
  change(request);
  absl::StatusOr<SessionSpec> spec = ToSessionSpec(request);
  if (!spec.ok()) return spec;
  absl::Status valid = ValidateSpec(*spec, EngineOptions());
  if (!valid.ok()) return valid;
  return spec;
}

void ExpectRefused(const std::string& field, const Change& change) {
  const absl::Status status = ConvertWith(change).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << field;
  EXPECT_TRUE(absl::StartsWith(status.message(), field + ": ")) << field << " / " << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "must be ")) << status;
}

TEST(ToSessionSpec, FillsInDefaults) {
  const absl::StatusOr<SessionSpec> spec = ConvertWith([](auto&) {});
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->name, "chat");
  EXPECT_EQ(spec->model, "model-7b");
  EXPECT_EQ(spec->dtype, DType::kBf16);
  EXPECT_EQ(spec->codec, Codec::kPlanes);
  EXPECT_EQ(spec->profile, Profile::kCompact);
  EXPECT_EQ(spec->time_to_live, absl::InfiniteDuration());
  ASSERT_EQ(spec->layers.size(), 2u);
  EXPECT_EQ(spec->layers[1].query_heads, 8);
}

TEST(ToSessionSpec, PackKvOptionsHaveDefaultsFieldByField) {
  const auto of = [](const Change& change) {
    return ConvertWith([&](auto& r) {
      r.set_codec(v1::CODEC_PACKKV);
      change(r);
    });
  };
  absl::StatusOr<SessionSpec> spec = of([](auto&) {});
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->codec, Codec::kPackKv);
  EXPECT_EQ(spec->packkv.k_relative_scale, .1f);
  EXPECT_EQ(spec->packkv.v_relative_scale, .2f);
  EXPECT_EQ(spec->packkv.pack_tokens, 16);
  EXPECT_EQ(spec->packkv.repacking, packkv::Repacking::kNone);
  spec = of([](auto& r) {
    r.mutable_packkv()->set_v_relative_scale(.3f);
    r.mutable_packkv()->set_repacking(v1::PACK_KV_REPACKING_GREEDY);
  });
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->packkv.k_relative_scale, .1f);
  EXPECT_EQ(spec->packkv.v_relative_scale, .3f);
  EXPECT_EQ(spec->packkv.repacking, packkv::Repacking::kGreedy);
}

TEST(ToSessionSpec, NormalisedPackKvHasDefaultsAndRangesOfItsOwn) {
  absl::StatusOr<SessionSpec> spec = ConvertWith([](auto& r) {
    r.set_codec(v1::CODEC_PACKKV);
    r.mutable_packkv()->set_normalize(true);
    r.mutable_packkv()->set_v_relative_scale(1.5f);
    r.set_calibration("abc");
  });
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_TRUE(spec->packkv.normalize);
  EXPECT_EQ(spec->packkv.k_relative_scale, .8f);
  EXPECT_EQ(spec->packkv.v_relative_scale, 1.5f);
  ExpectRefused("packkv.k_relative_scale", [](auto& r) {
    r.set_codec(v1::CODEC_PACKKV);
    r.mutable_packkv()->set_normalize(true);
    r.mutable_packkv()->set_k_relative_scale(.05f);
  });
}

TEST(ToSessionSpec, ChecksPackKvOptions) {
  const auto refused = [](const std::string& field, const Change& change) {
    ExpectRefused(field, [&](auto& r) {
      r.set_codec(v1::CODEC_PACKKV);
      change(r);
    });
  };
  for (const float scale : {-1.f, .001f, 1.01f, kInfinity, kNan}) {
    refused("packkv.k_relative_scale",
            [=](auto& r) { r.mutable_packkv()->set_k_relative_scale(scale); });
    refused("packkv.v_relative_scale",
            [=](auto& r) { r.mutable_packkv()->set_v_relative_scale(scale); });
  }
  for (const uint32_t tokens : {1u, 32u, ~0u}) {
    refused("packkv.pack_tokens", [=](auto& r) { r.mutable_packkv()->set_pack_tokens(tokens); });
  }
  refused("packkv.repacking",
          [](auto& r) { r.mutable_packkv()->set_repacking(static_cast<v1::PackKvRepacking>(9)); });
  refused("profile", [](auto& r) { r.set_profile(v1::PROFILE_FINE); });
  refused("calibration", [](auto& r) { r.set_calibration("abc"); });
  ExpectRefused("packkv", [](auto& r) { r.mutable_packkv()->set_pack_tokens(8); });
}

TEST(ToSessionSpec, ChecksTexts) {
  ExpectRefused("name", [](auto& r) { r.clear_name(); });
  ExpectRefused("name", [](auto& r) { r.set_name(std::string(257, 'x')); });
  ExpectRefused("model", [](auto& r) { r.set_model(std::string(257, 'x')); });
  EXPECT_TRUE(ConvertWith([](auto& r) { r.set_name(std::string(256, 'x')); }).ok());
  EXPECT_TRUE(ConvertWith([](auto& r) { r.clear_model(); }).ok());
}

TEST(ToSessionSpec, ChecksLayerCount) {
  ExpectRefused("layers", [](auto& r) { r.clear_layers(); });
  ExpectRefused("layers", [](auto& r) {
    while (r.layers_size() < 257) *r.add_layers() = r.layers(0);
  });
}

TEST(ToSessionSpec, ChecksShapes) {
  for (const uint32_t heads : {0u, 1025u, ~0u}) {
    ExpectRefused("layers[1].kv_heads", [=](auto& r) { r.mutable_layers(1)->set_kv_heads(heads); });
  }
  for (const uint32_t heads : {0u, 1u, 3u, 34u, ~0u}) {
    ExpectRefused("layers[1].query_heads",
                  [=](auto& r) { r.mutable_layers(1)->set_query_heads(heads); });
  }
  for (const uint32_t dim : {0u, 32u, 96u, 512u, ~0u}) {
    ExpectRefused("layers[0].head_dim", [=](auto& r) { r.mutable_layers(0)->set_head_dim(dim); });
  }
  for (const float cap : {-1.f, kInfinity, kNan}) {
    ExpectRefused("layers[0].soft_cap", [=](auto& r) { r.mutable_layers(0)->set_soft_cap(cap); });
  }
  ExpectRefused("layers[0].sliding_window",
                [](auto& r) { r.mutable_layers(0)->set_sliding_window(1u << 31); });
}

TEST(ToSessionSpec, AcceptsTheEdgesOfShapes) {
  EXPECT_TRUE(ConvertWith([](auto& r) {
                v1::LayerShape* layer = r.mutable_layers(0);
                layer->set_kv_heads(1024);
                layer->set_query_heads(16 * 1024);
                layer->set_head_dim(256);
                layer->set_soft_cap(50);
                layer->set_sliding_window(4096);
              }).ok());
}

TEST(ToSessionSpec, ChecksEnums) {
  ExpectRefused("dtype", [](auto& r) { r.clear_dtype(); });
  ExpectRefused("dtype", [](auto& r) { r.set_dtype(static_cast<v1::Dtype>(9)); });
  ExpectRefused("codec", [](auto& r) { r.set_codec(static_cast<v1::Codec>(9)); });
  ExpectRefused("profile", [](auto& r) { r.set_profile(static_cast<v1::Profile>(9)); });
}

TEST(ToSessionSpec, ChecksCodecAndProfileTogether) {
  ExpectRefused("profile", [](auto& r) { r.set_profile(v1::PROFILE_EXACT); });
  for (int profile = v1::PROFILE_TINY; profile <= v1::PROFILE_FINE; ++profile) {
    const auto p = static_cast<v1::Profile>(profile);
    EXPECT_TRUE(ConvertWith([=](auto& r) { r.set_profile(p); }).ok()) << profile;
    ExpectRefused("profile", [=](auto& r) {
      r.set_codec(v1::CODEC_RAW);
      r.set_profile(p);
    });
  }
  EXPECT_TRUE(ConvertWith([](auto& r) { r.set_codec(v1::CODEC_RAW); }).ok());
  EXPECT_TRUE(ConvertWith([](auto& r) {
                r.set_codec(v1::CODEC_RAW);
                r.set_profile(v1::PROFILE_EXACT);
              }).ok());
}

TEST(ToSessionSpec, TakesACalibrationWithPlanesAlone) {
  const std::string hash(64, 'a');
  EXPECT_EQ(ConvertWith([&](auto& r) { r.set_calibration(hash); })->calibration, hash);
  ExpectRefused("calibration", [&](auto& r) {
    r.set_codec(v1::CODEC_RAW);
    r.set_calibration(hash);
  });
}

TEST(ToSessionSpec, ChecksTimeToLive) {
  ExpectRefused("time_to_live", [](auto& r) { r.mutable_time_to_live(); });
  ExpectRefused("time_to_live", [](auto& r) { r.mutable_time_to_live()->set_seconds(-1); });
  ExpectRefused("time_to_live", [](auto& r) { r.mutable_time_to_live()->set_nanos(-1); });
  ExpectRefused("time_to_live", [](auto& r) {
    r.mutable_time_to_live()->set_seconds(std::numeric_limits<int64_t>::max());
  });
  const auto spec = ConvertWith([](auto& r) { r.mutable_time_to_live()->set_seconds(90); });
  ASSERT_TRUE(spec.ok());
  EXPECT_EQ(spec->time_to_live, absl::Seconds(90));
}

TEST(ToSessionSpec, ChecksQuerySecondMoments) {
  const auto with = [](int values, float value) {
    return [=](v1::CreateSessionRequest& r) {
      r.add_query_second_moments();
      for (int i = 0; i < values; ++i) r.mutable_query_second_moments(0)->add_values(1);
      if (values > 0) r.mutable_query_second_moments(0)->set_values(values - 1, value);
      r.add_query_second_moments();
    };
  };
  EXPECT_TRUE(ConvertWith(with(128, 2)).ok());
  EXPECT_TRUE(ConvertWith(with(0, 0)).ok());
  ExpectRefused("query_second_moments[0].values", with(127, 1));
  for (const float bad : {kNan, kInfinity, -1.f}) {
    ExpectRefused("query_second_moments[0].values[127]", with(128, bad));
  }
  ExpectRefused("query_second_moments", [](auto& r) { r.add_query_second_moments(); });
}

TEST(CheckGetSession, WantsExactlyOneOfIdAndName) {
  v1::GetSessionRequest request;
  EXPECT_FALSE(CheckGetSession(request, EngineOptions()).ok());
  request.set_name("chat");
  EXPECT_TRUE(CheckGetSession(request, EngineOptions()).ok());
  request.set_session_id("id");
  EXPECT_FALSE(CheckGetSession(request, EngineOptions()).ok());
  request.clear_name();
  EXPECT_TRUE(CheckGetSession(request, EngineOptions()).ok());
  request.set_session_id(std::string(65, 'x'));
  EXPECT_FALSE(CheckGetSession(request, EngineOptions()).ok());
}

TEST(ToListRange, ChecksPage) {
  v1::ListSessionsRequest request;
  EXPECT_EQ(ToListRange(request, EngineOptions())->limit, 256u);
  request.set_page_size(7);
  request.set_page_token("chat");
  EXPECT_EQ(ToListRange(request, EngineOptions())->limit, 7u);
  EXPECT_EQ(ToListRange(request, EngineOptions())->after_name, "chat");
  request.set_page_size(257);
  EXPECT_FALSE(ToListRange(request, EngineOptions()).ok());
  request.set_page_size(1);
  request.set_page_token(std::string(257, 'x'));
  EXPECT_FALSE(ToListRange(request, EngineOptions()).ok());
}

TEST(SessionToProto, IsTheInverse) {
  SessionInfo info;
  info.id = "id";
  info.spec = *ConvertWith([](auto& r) {
    r.set_profile(v1::PROFILE_FINE);
    r.mutable_time_to_live()->set_seconds(2);
    r.mutable_time_to_live()->set_nanos(5);
    r.mutable_layers(1)->set_soft_cap(30);
  });
  info.generation = 3;
  info.layers = {{10, 0}, {11, 0}};
  info.committed_token_count = 10;
  info.logical_bytes = 100;
  info.stored_bytes = 20;
  info.create_time = absl::FromUnixSeconds(1000) + absl::Nanoseconds(7);
  v1::Session session;
  ToProto(info, &session);
  EXPECT_EQ(session.profile(), v1::PROFILE_FINE);
  EXPECT_EQ(session.codec(), v1::CODEC_PLANES);
  EXPECT_EQ(session.time_to_live().seconds(), 2);
  EXPECT_EQ(session.time_to_live().nanos(), 5);
  EXPECT_EQ(session.layers(1).soft_cap(), 30);
  EXPECT_EQ(session.layer_states(1).token_count(), 11u);
  EXPECT_EQ(session.create_time().seconds(), 1000);
  EXPECT_EQ(session.create_time().nanos(), 7);
  EXPECT_FALSE(session.has_expire_time());
  EXPECT_EQ(session.generation(), 3u);
  EXPECT_EQ(session.logical_bytes(), 100u);
  EXPECT_EQ(session.stored_bytes(), 20u);
}

TEST(SessionToProto, SaysThePackKvOptions) {
  SessionInfo info;
  info.spec = *ConvertWith([](auto& r) {
    r.set_codec(v1::CODEC_PACKKV);
    r.mutable_packkv()->set_pack_tokens(4);
    r.mutable_packkv()->set_repacking(v1::PACK_KV_REPACKING_MEDIAN);
  });
  v1::Session session;
  ToProto(info, &session);
  EXPECT_EQ(session.codec(), v1::CODEC_PACKKV);
  EXPECT_EQ(session.profile(), v1::PROFILE_UNSPECIFIED);
  EXPECT_EQ(session.packkv().k_relative_scale(), .1f);
  EXPECT_EQ(session.packkv().v_relative_scale(), .2f);
  EXPECT_EQ(session.packkv().pack_tokens(), 4u);
  EXPECT_EQ(session.packkv().repacking(), v1::PACK_KV_REPACKING_MEDIAN);
}

}  // namespace
}  // namespace kvdepot
