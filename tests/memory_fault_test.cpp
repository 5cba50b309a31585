// SPDX-License-Identifier: Apache-2.0
// Memories on a disk that fails at every write, sync, rename and removal: no row that was committed is ever lost.
#include <faiss/Index.h>
#include <faiss/index_factory.h>
#include <faiss/index_io.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <set>

#include "faults.h"
#include "io/npy.h"
#include "memory_rows.h"
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
  // What a killed optimize() goes on from is known without the database.
  const auto kept = [](const fs::directory_entry& entry) {
    const std::string name = entry.path().filename().string();
    return name.starts_with("checkpoint_") && name.find(".tmp") == std::string::npos;
  };
  const auto count = [&](const char* folder) {
    return std::count_if(fs::directory_iterator(path / folder), fs::directory_iterator(), std::not_fn(kept));
  };
  const auto info = memory.info();
  const std::int64_t here = info.shards - (info.attached > 0 ? 1 : 0);
  EXPECT_EQ(count("img_emb"), here);
  EXPECT_EQ(count("text_emb"), here);
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

/// Attaches files that lie beside the memories.
Step attaching(const Model& before, const fs::path& folder, const Model& pairs) {
  const std::array<fs::path, 2> files{folder / "image.npy", folder / "text.npy"};
  const reco::RowFormat format(reco::Storage::float16, kDim);
  reco::RowInfo info;
  std::array<std::vector<std::byte>, 2> data;
  for (const auto& [key, caption] : pairs) {
    const Matrix row = embedding_of(caption).rowwise().normalized();
    for (std::size_t side = 0; side < 2; ++side) {
      const Matrix signed_row = side == 0 ? row : -row;
      data[side].resize(data[side].size() + static_cast<std::size_t>(format.bytes()));
      format.encode(signed_row.data(), data[side].data() + data[side].size() - format.bytes());
    }
    info.keys.push_back(key);
    info.captions.push_back(caption);
  }
  const std::string header = reco::io::npy_header("<f2", {static_cast<std::int64_t>(pairs.size()), kDim});
  for (std::size_t side = 0; side < 2; ++side) {
    std::ofstream(files[side], std::ios::binary)
        << header << std::string(reinterpret_cast<const char*>(data[side].data()), data[side].size());
  }
  Step step{[=](Memory& m) { m.attach(files[0], files[1], info); }, before};
  for (const auto& [key, caption] : pairs) step.after[key] = caption;
  return step;
}

Step keeping(const Model& before, const std::function<void(Memory&)>& change) { return {change, before}; }

/// Builds an index, stopped once on the way, and goes on from the checkpoint.
void optimize_in_two(Memory& memory, const char* index) {
  try {
    memory.optimize({.index = index}, [](std::int64_t done, std::int64_t) { return done < 2; });
  } catch (const reco::Error& error) {
    if (!has(error.what(), "[interrupted]")) throw;
  }
  memory.optimize({.index = index});
}

/// An index of FAISS's over the images, put beside the memories.
fs::path write_index(const Memory& memory, const fs::path& folder) {
  const auto rows = memory.rows();
  std::vector<std::int64_t> all(static_cast<std::size_t>(rows.back() + 1));
  std::iota(all.begin(), all.end(), std::int64_t{0});
  const Matrix images = memory.embeddings(all, Modality::image);
  const std::unique_ptr<faiss::Index> index(faiss::index_factory(kDim, "Flat", faiss::METRIC_INNER_PRODUCT));
  index->add(images.rows(), images.data());
  faiss::write_index(index.get(), (folder / "adopted.index").c_str());
  return folder / "adopted.index";
}

/// One of every change, in an order in which each finds something to do. `folder` holds what lies elsewhere.
std::vector<std::function<Step(const Model&)>> scenario(const fs::path& folder) {
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
      [](const Model& m) { return keeping(m, [](Memory& x) { x.optimize({.index = "SQ8"}); }); },
      [=](const Model& m) {
        return attaching(m, folder, {{"e", "7"}, {"f", "8"}});
      },
      [](const Model& m) { return keeping(m, [](Memory& x) { optimize_in_two(x, "IVF2,SQ8"); }); },
      [](const Model& m) {
        return removing(m, {"b", "d"});
      },
      [=](const Model& m) {
        return keeping(m, [=](Memory& x) { x.adopt_index(write_index(x, folder), Modality::image); });
      },
      [](const Model& m) { return keeping(m, [](Memory& x) { optimize_in_two(x, "HNSW4"); }); },
  };
}

}  // namespace

TEST_F(MemoryFaults, EveryCallOfEveryChange) {
  const auto steps = scenario(folder_ / "");
  std::vector<Model> before;
  const auto copy_of = [&](std::size_t step) { return folder_ / ("before " + std::to_string(step)); };
  start("whole");
  for (const auto& step : steps) {
    memory_.reset();
    fs::copy(path_, copy_of(before.size()), fs::copy_options::recursive);
    before.push_back(model_);
    reopen();
    run(step(model_), Kind::none, 0, 0);
  }
  ASSERT_FALSE(HasFailure());
  // Every second call takes a minute; all of them where RECO_FAULT_SEQUENCES asks for a long run.
  const std::int64_t stride = std::getenv("RECO_FAULT_SEQUENCES") != nullptr ? 1 : 2;
  std::int64_t faults = 0;
  for (const Kind kind : {Kind::error, Kind::full, Kind::power, Kind::kill}) {
    for (std::size_t broken = 0; broken < steps.size(); ++broken) {
      fired_ = true;
      for (std::int64_t calls = static_cast<int>(kind) % stride; fired_; calls += stride) {
        path_ = folder_ / std::to_string(faults++);
        fs::copy(copy_of(broken), path_, fs::copy_options::recursive);
        memory_ = std::make_unique<Memory>(Memory::open(path_));
        model_ = before[broken];
        const Step step = steps[broken](model_);
        run(step, kind, calls, static_cast<unsigned>(faults));
        const bool fired = fired_;
        if (step.after == before[broken] || model_ != step.after) {  // once more, without a fault
          run(step, Kind::none, 0, 0);
          EXPECT_EQ(model_, step.after);
        }
        fired_ = fired;
        ASSERT_FALSE(HasFailure()) << "kind " << static_cast<int>(kind) << ", step " << broken << ", call " << calls;
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
      const auto index = std::array{"IVF1", "HNSW4", "exact", "SQ8", "IVF1,SQ4"}[random(5)];
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

TEST_F(MemoryFaults, EveryCallOfCreate) {
  std::int64_t made = 0, refused = 0;
  for (const Kind kind : {Kind::error, Kind::full, Kind::power, Kind::kill}) {
    fired_ = true;
    for (std::int64_t calls = 0; fired_; ++calls) {
      path_ = folder_ / ("create " + std::to_string(static_cast<int>(kind)) + ' ' + std::to_string(calls));
      disk_.plan(kind, calls, static_cast<unsigned>(calls));
      const std::string error = error_of([&] { Memory::create(path_, kDim, "encoder"); });
      fired_ = disk_.fired();
      disk_.heal();
      // Either the memory is there, or it can be made where it failed.
      const std::string closed = error_of([&] { Memory::open(path_); });
      if (!error.empty() && !closed.empty()) Memory::create(path_, kDim, "encoder");
      if (error.empty()) {
        EXPECT_EQ(closed, "") << calls;
      }
      error.empty() ? ++made : ++refused;
      Memory memory = Memory::open(path_, false, "encoder");
      add(memory, {{"a", "1"}}, false);
      EXPECT_EQ(content(memory), (Model{{"a", "1"}})) << calls;
      ASSERT_FALSE(HasFailure()) << "kind " << static_cast<int>(kind) << ", call " << calls;
    }
  }
  EXPECT_GT(made, 3);
  EXPECT_GT(refused, 20);
}

TEST_F(MemoryFaults, EveryCallOfRepair) {
  std::int64_t refused = 0;
  for (const Kind kind : {Kind::error, Kind::full, Kind::power, Kind::kill}) {
    fired_ = true;
    for (std::int64_t calls = 0; fired_; ++calls) {
      start("repair " + std::to_string(static_cast<int>(kind)) + ' ' + std::to_string(calls));
      add(*memory_, {{"a", "1"}, {"b", "2"}, {"c", "3"}}, false);
      add(*memory_, {{"d", "4"}}, false);
      memory_->optimize({.index = "SQ8"});
      memory_.reset();
      const fs::path shard = path_ / "img_emb/img_emb_00000.npy";
      std::fstream(shard, std::ios::binary | std::ios::in | std::ios::out)
          .seekp(128 + 2 * kDim)
          .put('\x7f')
          .put('\x11');
      disk_.plan(kind, calls, static_cast<unsigned>(calls));
      const std::string error = error_of([&] { Memory::repair(path_); });
      fired_ = disk_.fired();
      disk_.heal();
      if (!error.empty()) Memory::repair(path_), ++refused;
      memory_ = std::make_unique<Memory>(Memory::open(path_));
      EXPECT_EQ(content(*memory_), (Model{{"a", "1"}, {"c", "3"}, {"d", "4"}})) << calls;
      EXPECT_EQ(memory_->verify(), std::vector<std::string>{});
      expect_no_orphans(*memory_, path_);
      ASSERT_FALSE(HasFailure()) << "kind " << static_cast<int>(kind) << ", call " << calls;
      memory_.reset();
    }
  }
  EXPECT_GT(refused, 20);
}

TEST_F(MemoryFaults, AFullDiskLeavesNoPartOfAnIndex) {
  start("full");
  add(*memory_, {{"a", "1"}, {"b", "2"}, {"c", "3"}}, false);
  for (const char* index : {"SQ8", "Flat", "IVF1,SQ8"}) {
    for (std::int64_t calls = 0;; ++calls) {
      disk_.plan(Kind::full, calls, 1);
      const std::string error = error_of([&] { memory_->optimize({.index = index}); });
      const bool fired = disk_.fired();
      disk_.heal();
      EXPECT_EQ(memory_->verify(), std::vector<std::string>{}) << index << ' ' << calls;
      if (!fired) break;
      if (error.empty()) continue;
      EXPECT_TRUE(has(error, path_.string())) << error;  // names the file
      // A commit that failed may still be found in the log, and then needs its files.
      if (has(error, "SQLite")) reopen();
      expect_no_orphans(*memory_, path_);
    }
    EXPECT_EQ(memory_->info().indexes[0].index, index);
    memory_->optimize({.index = "exact"});
  }
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
