// kvdepot sessions: the tenant's sessions, one a line.
#include <cstdio>

#include "absl/strings/str_format.h"
#include "client/cli/command.h"
#include "client/cli/daemon_flags.h"
#include "client/cli/json.h"
#include "client/cli/quantity.h"
#include "client/cli/session_facts.h"
#include "client/table.h"

namespace kvdepot::cli {
namespace {

std::string SessionsText(const std::vector<v1::Session>& sessions) {
  constexpr Table::Align kRight = Table::Align::kRight;
  Table table({{"NAME"},
               {"TOKENS", kRight},
               {"LAYERS", kRight},
               {"CODEC"},
               {"STORED", kRight},
               {"BITS/VALUE", kRight},
               {"RATIO", kRight},
               {"MODEL"}});
  for (const v1::Session& session : sessions) {
    table.AddRow({session.name(), CountText(session.committed_token_count()),
                  CountText(session.layers_size()),
                  session.profile() == v1::PROFILE_UNSPECIFIED
                      ? EnumText(session.codec())
                      : absl::StrCat(EnumText(session.codec()), "/", EnumText(session.profile())),
                  BytesText(session.stored_bytes()), absl::StrFormat("%.2f", BitsPerValue(session)),
                  absl::StrFormat("%.2f", Ratio(session)), session.model()});
  }
  return table.ToString();
}

}  // namespace

absl::Status RunSessions(const Arguments&) {
  const absl::StatusOr<std::unique_ptr<Client>> client = ConnectToDaemon();
  if (!client.ok()) return client.status();
  const absl::StatusOr<std::vector<v1::Session>> sessions = (*client)->ListSessions(Deadline());
  if (!sessions.ok()) return sessions.status();
  if (WantsJson()) {
    v1::ListSessionsResponse all;
    all.mutable_sessions()->Add(sessions->begin(), sessions->end());
    PrintJson(all);
  } else {
    std::fputs(SessionsText(*sessions).c_str(), stdout);
  }
  return absl::OkStatus();
}

}  // namespace kvdepot::cli
