// What GetServerInfo answers: the daemon and every limit a client can meet.
#ifndef KVDEPOT_SERVER_SERVICES_SERVER_INFO_H_
#define KVDEPOT_SERVER_SERVICES_SERVER_INFO_H_

#include <string>

#include "kvdepot/v1/kv_depot_service.pb.h"
#include "server/services/service_context.h"

namespace kvdepot {

void FillServerInfo(const ServiceContext& context, const std::string& tenant,
                    v1::GetServerInfoResponse* response);

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_SERVICES_SERVER_INFO_H_
