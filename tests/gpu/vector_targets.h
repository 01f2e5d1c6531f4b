// Runs a test body once for every instruction set that this processor and build have (EMU128, plain
// C++, always).
#ifndef KVDEPOT_TESTS_GPU_VECTOR_TARGETS_H_
#define KVDEPOT_TESTS_GPU_VECTOR_TARGETS_H_

#include "gtest/gtest.h"
#include "hwy/highway.h"
#include "hwy/targets.h"

namespace kvdepot {

template <class Body>
void ForEachVectorTarget(const Body& body) {
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    body();
    hwy::SetSupportedTargetsForTest(0);
    hwy::GetChosenTarget().DeInit();
  }
}

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_GPU_VECTOR_TARGETS_H_
