// SPDX-License-Identifier: Apache-2.0
#include "reco/threads.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <thread>

#include "reco/error.h"
#include "use_threads.h"

TEST(Threads, KnobHoldsInEveryThread) {
  reco::set_threads(2);
  EXPECT_EQ(reco::threads(), 2);
  int seen = 0;
  std::thread([&] {
    reco::use_threads();
    seen = omp_get_max_threads();
  }).join();
  EXPECT_EQ(seen, 2);
}

TEST(Threads, RefusesNonsense) {
  EXPECT_THROW(reco::set_threads(0), reco::Error);
  EXPECT_THROW(reco::set_threads(1025), reco::Error);
}
