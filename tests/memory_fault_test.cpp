// SPDX-License-Identifier: Apache-2.0
// Memories on a disk that fails at every write, sync, rename and removal: no row that was committed is ever lost.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>

#include "faults.h"
#include "reco/memory.h"
#include "reco/threads.h"
#include "support.h"

namespace fs = std::filesystem;
using reco::Matrix;
using reco::Memory;
using reco::Modality;
using Kind = FaultyDisk::Kind;

namespace {

constexpr std::int64_t kDim = 8;

/// What a memory should hold: the caption of each key, which says what its embeddings are.
using Model = std::map<std::string, std::string>;

Matrix embedding_of(const std::string& caption) {
  std::mt19937 generator(static_cast<unsigned>(std::stoul(caption)));
  std::normal_distribution<float> normal;
  return Matrix::NullaryExpr(1, kDim, [&] { return normal(generator); });
}

void add(Memory& memory, const Model& pairs, bool replace) {
  Matrix rows(static_cast<Eigen::Index>(pairs.size()), kDim);
  reco::RowInfo info;
  for (const auto& [key, caption] : pairs) {
    rows.row(static_cast<Eigen::Index>(info.keys.size())) = embedding_of(caption);
    info.keys.push_back(key);
    info.captions.push_back(caption);
  }
  replace ? memory.upsert(rows, -rows, info) : memory.add(rows, -rows, info);
}

/// The memory's pairs; every embedding is checked against what its caption says.
Model content(const Memory& memory) {
  Model found;
  const auto rows = memory.rows();
  const auto keys = memory.keys(rows), captions = memory.captions(rows);
  const Matrix images = memory.embeddings(rows, Modality::image), texts = memory.embeddings(rows, Modality::text);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    found[keys[i]] = captions[i];
    const Matrix expected = embedding_of(captions[i]).rowwise().normalized();
    const auto row = static_cast<Eigen::Index>(i);
    EXPECT_GT(images.row(row).dot(expected.row(0)), 0.99F);
    EXPECT_LT(texts.row(row).dot(expected.row(0)), -0.99F);
  }
  EXPECT_EQ(found.size(), rows.size());
  if (found.empty()) return found;
  const auto some = memory.search(embedding_of(found.begin()->second), {.k = 1});
  EXPECT_EQ(memory.captions(std::array{some.rows(0, 0)})[0], found.begin()->second);
  return found;
}

/// A change, and what it makes of the model.
struct Step {
  std::function<void(Memory&)> change;
  Model after;
};

/// No file that the memory does not know.
void expect_no_orphans(const Memory& memory, const fs::path& path) {
  const auto count = [&](const char* folder) {
    return std::distance(fs::directory_iterator(path / folder), fs::directory_iterator());
  };
  const auto info = memory.info();
  EXPECT_EQ(count("img_emb"), info.shards);
  EXPECT_EQ(count("text_emb"), info.shards);
  EXPECT_LE(count("rows"), info.shards);
  EXPECT_EQ(count("index"), static_cast<std::ptrdiff_t>(info.indexes.size()));
}

class MemoryFaults : public testing::Test {
 protected:
  MemoryFaults() : disk_(folder_ / "attic"), threads_(reco::threads()) { reco::set_threads(1); }
  ~MemoryFaults() override { reco::set_threads(threads_); }

  void start(const std::string& name) {
    path_ = folder_ / name;
    memory_ = std::make_unique<Memory>(Memory::create(path_, kDim));
    model_.clear();
  }

  void reopen() {
    memory_.reset();
    disk_.heal();
    memory_ = std::make_unique<Memory>(Memory::open(path_));
  }

  /// Runs a step with a fault; the memory must be in the state before or after it, and after it if it returned.
  void run(const Step& step, Kind kind, std::int64_t calls, unsigned seed) {
    disk_.plan(kind, calls, seed);
    std::string error;
    try {
      step.change(*memory_);
    } catch (const reco::Error& e) {
      error = e.what();
    }
    fired_ = disk_.fired();
    if (!fired_) {
      EXPECT_EQ(error, "");
    }
    failures_ += !error.empty();
    const bool broken = error.find("open it again") != std::string::npos;
    if (!fired_ || kind == Kind::error || kind == Kind::full) {
      disk_.heal();
      // As far as this process sees, a change that failed did not happen.
      if (!broken) {
        EXPECT_EQ(content(*memory_), error.empty() ? step.after : model_) << error;
      }
    }
    if (fired_) reopen();
    const Model found = content(*memory_);
    const bool fits = found == step.after || (!error.empty() && found == model_);
    EXPECT_TRUE(fits) << error << ": " << found.size() << " rows, expected " << model_.size() << " or "
                      << step.after.size();
    EXPECT_EQ(memory_->verify(), std::vector<std::string>{});
    if (fired_) expect_no_orphans(*memory_, path_);
    model_ = found;
  }

  const Folder folder_;
  FaultyDisk disk_;
  int threads_;
  fs::path path_;
  std::unique_ptr<Memory> memory_;
  Model model_;
  bool fired_ = false;
  std::int64_t failures_ = 0;
};

Step adding(const Model& before, const Model& pairs, bool replace) {
  Step step{[=](Memory& m) { add(m, pairs, replace); }, before};
  for (const auto& [key, caption] : pairs) step.after[key] = caption;
  return step;
}

Step removing(const Model& before, const std::vector<std::string>& keys) {
  Step step{[=](Memory& m) { m.remove(keys); }, before};
  for (const std::string& key : keys) step.after.erase(key);
  return step;
}

Step keeping(const Model& before, const std::function<void(Memory&)>& change) { return {change, before}; }

/// One of every change, in an order in which each finds something to do.
std::vector<std::function<Step(const Model&)>> scenario() {
  return {
      [](const Model& m) {
        return adding(m, {{"a", "1"}, {"b", "2"}, {"c", "3"}}, false);
      },
      [](const Model& m) {
        return adding(m, {{"b", "4"}, {"d", "5"}}, true);
      },
      [](const Model& m) { return keeping(m, [](Memory& x) { x.optimize({.index = "HNSW4"}); }); },
      [](const Model& m) { return removing(m, {"a"}); },
      [](const Model& m) { return keeping(m, [](Memory& x) { x.compact(); }); },
      [](const Model& m) {
        return adding(m, {{"a", "6"}}, false);
      },
      [](const Model& m) { return keeping(m, [](Memory& x) { x.optimize({.index = "IVF1"}); }); },
      [](const Model& m) { return keeping(m, [](Memory& x) { x.optimize({.index = "exact"}); }); },
      [](const Model& m) {
        return removing(m, {"b", "d"});
      },
  };
}

}  // namespace

TEST_F(MemoryFaults, EveryCallOfEveryChange) {
  const auto steps = scenario();
  std::int64_t faults = 0;
  for (const Kind kind : {Kind::error, Kind::full, Kind::power, Kind::kill}) {
    for (std::size_t broken = 0; broken < steps.size(); ++broken) {
      fired_ = true;
      for (std::int64_t calls = 0; fired_; ++calls) {
        start(std::to_string(faults++));
        for (std::size_t i = 0; i < steps.size(); ++i) {
          const Step step = steps[i](model_);
          run(step, i == broken ? kind : Kind::none, calls, static_cast<unsigned>(faults));
          const bool fired = fired_;
          if (i == broken && model_ != step.after) {  // once more, without a fault
            run(step, Kind::none, 0, 0);
            EXPECT_EQ(model_, step.after);
          }
          if (i == broken && !fired) break;
          if (i == broken) fired_ = true;
          ASSERT_FALSE(HasFailure()) << "kind " << static_cast<int>(kind) << ", step " << broken << ", call " << calls;
          if (i == broken) break;
        }
        memory_.reset();
        fs::remove_all(path_);
        if (calls > 1'000) FAIL() << "no end";
      }
    }
  }
  std::cout << faults << " faults, " << failures_ << " changes failed\n";
  EXPECT_GT(failures_, 100);
}

TEST_F(MemoryFaults, RandomSequences) {
  const char* wanted = std::getenv("RECO_FAULT_SEQUENCES");
  const int sequences = wanted != nullptr ? std::stoi(wanted) : 300;
  std::int64_t faults = 0;
  for (int seed = 0; seed < sequences; ++seed) {
    std::mt19937 generator(static_cast<unsigned>(seed));
    const auto random = [&](unsigned below) { return generator() % below; };
    start("random " + std::to_string(seed));
    unsigned next = 1;
    for (int i = 0; i < 15; ++i) {
      Model pairs;
      for (unsigned n = 1 + random(4); n > 0; --n) pairs["key " + std::to_string(random(12))] = std::to_string(next++);
      std::vector<std::string> keys;
      for (const auto& [key, caption] : model_) {
        if (random(3) == 0) keys.push_back(key);
      }
      const auto index = std::array{"IVF1", "HNSW4", "exact"}[random(3)];
      Step step;
      switch (random(8)) {
        case 0:
          step = keeping(model_, [](Memory& m) { m.compact(); });
          break;
        case 1:
          step = keeping(model_, [=](Memory& m) { m.optimize({.index = index}); });
          break;
        case 2:
        case 3:
          step = removing(model_, keys);
          break;
        case 4:
          for (const auto& [key, caption] : model_) pairs.erase(key);
          step = adding(model_, pairs, false);
          break;
        default:
          step = adding(model_, pairs, true);
      }
      if (random(5) == 0) reopen();
      const Kind kind = std::array{Kind::none, Kind::error, Kind::full, Kind::power, Kind::kill}[random(5)];
      run(step, kind, random(random(2) == 0 ? 6 : 40), generator());
      faults += fired_;
      ASSERT_FALSE(HasFailure()) << "sequence " << seed << ", change " << i << ", kind " << static_cast<int>(kind);
    }
    memory_.reset();
    fs::remove_all(path_);
  }
  std::cout << faults << " faults, " << failures_ << " changes failed\n";
  EXPECT_GT(faults, sequences);
}

TEST_F(MemoryFaults, ASyncThatFailedIsNotBuiltUpon) {
  // The commit's sync fails, its pages never reach the disk; what is committed after opening again must.
  for (std::int64_t calls = 0; calls < 30; ++calls) {
    start("sync " + std::to_string(calls));
    run(adding(model_, {{"a", "1"}}, false), Kind::none, 0, 0);
    run(adding(model_, {{"b", "2"}}, false), Kind::error, calls, 0);
    run(adding(model_, {{"c", "3"}}, false), Kind::none, 0, 0);
    const Model before = model_;
    EXPECT_TRUE(before.contains("c"));
    disk_.plan(Kind::power, 0, 7);
    EXPECT_NE(error_of([&] { add(*memory_, {{"d", "4"}}, false); }), "");
    reopen();
    EXPECT_EQ(content(*memory_), before) << calls;
    ASSERT_FALSE(HasFailure()) << calls;
    memory_.reset();
  }
}
