// SPDX-License-Identifier: Apache-2.0
// Random sequences of everything that a memory can be told, beside a model that is too simple to be wrong. How many
// comes from RECO_MEMORY_SEQUENCES; RECO_EVERY_BYTE=1 flips every byte of every file instead of some.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <map>
#include <optional>
#include <random>
#include <set>

#include "io/file.h"
#include "io/npy.h"
#include "memory_rows.h"
#include "reco/memory.h"
#include "support.h"

namespace fs = std::filesystem;
using reco::Matrix;
using reco::Memory;
using reco::Modality;

namespace {

constexpr std::int64_t kDim = 8;

std::int64_t from_environment(const char* name, std::int64_t otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr ? std::stoll(text) : otherwise;
}

Matrix random_rows(std::int64_t n, std::mt19937& generator) {
  std::normal_distribution<float> normal;
  Matrix rows = Matrix::NullaryExpr(n, kDim, [&] { return normal(generator); });
  rows.rowwise().normalize();
  return rows;
}

struct Pair {
  std::array<Eigen::RowVectorXf, 2> sides;
  std::int64_t group = 0;
};

using Model = std::map<std::string, Pair>;

/// What to search, and what may be found.
struct Question {
  Matrix query;
  std::int64_t k = 1;
  std::size_t side = 0;
  std::vector<std::string> excluded;
  std::optional<std::vector<std::string>> only;
  std::optional<std::int64_t> group;
  std::optional<float> most;

  bool admits(const std::string& key, const Pair& pair, float score) const {
    const auto in = [&](const std::vector<std::string>& keys) {
      return std::find(keys.begin(), keys.end(), key) != keys.end();
    };
    return !in(excluded) && (!only || in(*only)) && (!group || pair.group == *group) && (!most || score <= *most);
  }
  reco::SearchOptions options() const {
    return {.k = k,
            .modality = side == 0 ? Modality::image : Modality::text,
            .exclude_keys = {excluded},
            .only_keys = only,
            .where = group ? "json_extract(metadata, '$.group') = " + std::to_string(*group) : "",
            .max_similarity = most,
            .effort = 4'096};
  }
};

/// The best scores, best first.
std::vector<float> answer(const Model& model, const Question& question) {
  std::vector<float> scores;
  for (const auto& [key, pair] : model) {
    const float score = question.query.row(0).dot(pair.sides[question.side]);
    if (question.admits(key, pair, score)) scores.push_back(score);
  }
  std::sort(scores.begin(), scores.end(), std::greater<>());
  scores.resize(std::min(scores.size(), static_cast<std::size_t>(question.k)));
  return scores;
}

/// `tolerance`: what an index may miss of a similarity; a score itself is always that of half precision.
void expect_answer(const Memory& memory, const Model& model, const Question& question, float tolerance) {
  constexpr float rounding = 2e-3F;
  const auto found = memory.search(question.query, question.options());
  const auto keys = memory.keys({found.rows.data(), static_cast<std::size_t>(question.k)});
  const auto expected = answer(model, question);
  const std::set<std::string> different(keys.begin(), keys.end());
  std::size_t there = 0;
  for (std::size_t j = 0; j < keys.size(); ++j) {
    const auto place = static_cast<Eigen::Index>(j);
    if (keys[j].empty()) continue;
    ++there;
    ASSERT_TRUE(model.contains(keys[j])) << keys[j];
    const Pair& pair = model.at(keys[j]);
    const float score = question.query.row(0).dot(pair.sides[question.side]);
    EXPECT_NEAR(found.scores(0, place), score, rounding);
    EXPECT_TRUE(question.admits(keys[j], pair, score - (question.most ? rounding : 0.0F))) << keys[j];
    EXPECT_GT(found.partners.row(place).dot(pair.sides[1 - question.side]), 0.999F);
    if (j < expected.size()) {
      EXPECT_GE(found.scores(0, place), expected[j] - tolerance) << j;
    }
  }
  EXPECT_EQ(different.size() - different.count(""), there);
  // A row at the limit may be on either side of it.
  if (!question.most) {
    EXPECT_EQ(there, expected.size());
  }
}

class Sequence {
 public:
  Sequence(const fs::path& path, unsigned seed) : path_(path), generator_(seed), memory_(Memory::create(path, kDim)) {}

  void run(int changes) {
    for (int i = 0; i < changes && !testing::Test::HasFailure(); ++i) {
      change();
      if (random(6) == 0) reopen();
      for (int question = 0; question < 4; ++question) ask();
      EXPECT_EQ(memory_.size(), static_cast<std::int64_t>(model_.size()));
    }
    expect_everything();
    EXPECT_EQ(memory_.verify(), std::vector<std::string>{});
  }

 private:
  unsigned random(unsigned below) { return generator_() % below; }

  std::vector<std::string> some_keys(unsigned one_in) {
    std::vector<std::string> keys;
    for (const auto& [key, pair] : model_) {
      if (random(one_in) == 0) keys.push_back(key);
    }
    return keys;
  }

  void change() {
    switch (random(9)) {
      case 0:
        log_ += "compact ";
        return memory_.compact();
      case 1:
      case 2:
        return optimize();
      case 3:
      case 4:
        return remove();
      case 5:
        return put(false);
      default:
        return put(true);
    }
  }

  void optimize() {
    // FAISS's own graphs take no effort for one search: what they miss is theirs.
    constexpr std::array kinds{"HNSW8", "IVF2", "Flat", "SQ8", "IVF2,SQ8", "exact"};
    const std::string kind = kinds[random(kinds.size())];
    memory_.optimize({.index = kind, .recall = 1.0});
    tolerance_ = has(kind, "SQ8") ? 0.05F : 2e-3F;
    log_ += kind + ' ';
  }

  void remove() {
    const auto keys = some_keys(4);
    log_ += "remove " + std::to_string(keys.size()) + ' ';
    memory_.remove(keys);
    for (const std::string& key : keys) model_.erase(key);
  }

  void put(bool replace) {
    std::set<std::string> keys;
    for (unsigned n = 1 + random(12); n > 0; --n) keys.insert("key " + std::to_string(random(60)));
    if (!replace) std::erase_if(keys, [&](const std::string& key) { return model_.contains(key); });
    const auto n = static_cast<std::int64_t>(keys.size());
    const Matrix images = random_rows(n, generator_), texts = random_rows(n, generator_);
    reco::RowInfo info;
    for (const std::string& key : keys) {
      const auto row = static_cast<Eigen::Index>(info.keys.size());
      const auto group = static_cast<std::int64_t>(random(3));
      model_[key] = {{images.row(row), texts.row(row)}, group};
      info.keys.push_back(key);
      info.metadata.push_back("{\"group\": " + std::to_string(group) + "}");
    }
    log_ += (replace ? "upsert " : "add ") + std::to_string(n) + ' ';
    replace ? memory_.upsert(images, texts, info) : memory_.add(images, texts, info);
  }

  void reopen() {
    memory_.close();
    memory_ = Memory::open(path_);
  }

  void ask() {
    Question question{.query = random_rows(1, generator_),
                      .k = 1 + random(8),
                      .side = random(2),
                      .excluded = {},
                      .only = {},
                      .group = {},
                      .most = {}};
    if (random(3) == 0) question.excluded = some_keys(5);
    if (random(4) == 0) question.only = some_keys(2);
    if (random(4) == 0) question.group = random(4);
    if (random(4) == 0) question.most = 0.3F;
    SCOPED_TRACE(log_);
    expect_answer(memory_, model_, question, tolerance_);
  }

  void expect_everything() {
    const auto rows = memory_.rows();
    const auto keys = memory_.keys(rows);
    EXPECT_EQ(std::set<std::string>(keys.begin(), keys.end()).size(), model_.size());
    for (const auto& [key, pair] : model_) {
      EXPECT_TRUE(memory_.contains(key));
      const auto row = memory_.get(key);
      EXPECT_GT(row.image_embedding.dot(pair.sides[0].transpose()), 0.999F);
      EXPECT_GT(row.text_embedding.dot(pair.sides[1].transpose()), 0.999F);
      EXPECT_EQ(row.metadata, "{\"group\": " + std::to_string(pair.group) + "}");
    }
  }

  fs::path path_;
  std::mt19937 generator_;
  Memory memory_;
  Model model_;
  float tolerance_ = 2e-3F;
  std::string log_;  ///< what led to a failure
};

}  // namespace

TEST(MemoryProperty, RandomSequencesAnswerAsTheModelDoes) {
  const std::int64_t sequences = from_environment("RECO_MEMORY_SEQUENCES", 40);
  for (std::int64_t seed = 0; seed < sequences; ++seed) {
    const Folder folder;
    Sequence(folder / "m", static_cast<unsigned>(seed)).run(20);
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
  }
}

namespace {

/// What a memory answers; every kind of question.
std::string everything(const Memory& memory) {
  std::ostringstream out;
  const auto rows = memory.rows();
  for (const auto& words : {memory.keys(rows), memory.captions(rows), memory.metadata(rows)}) {
    for (const std::string& word : words) out << word << '\n';
  }
  std::mt19937 generator(9);
  for (const auto side : {Modality::image, Modality::text}) {
    const auto found = memory.search(random_rows(2, generator), {.k = 3, .modality = side});
    out << found.rows << found.scores << found.partners << memory.embeddings(rows, side);
  }
  return out.str();
}

/// Flips bits of a memory's files, one at a time: an error, a fault that verify() finds, or one of the answers that it
/// may give; by default what it gives before.
void flip_bytes(const fs::path& path, const std::vector<fs::path>& files, std::size_t step,
                std::set<std::string> answers = {}) {
  answers.insert(everything(Memory::open(path, true)));
  std::int64_t noticed = 0, unchanged = 0;
  for (const fs::path& file : files) {
    const std::string intact = reco::io::read_file(file);
    ASSERT_FALSE(intact.empty()) << file;
    for (std::size_t i = 0; i < intact.size(); i += step) {
      std::string flipped = intact;
      flipped[i] = static_cast<char>(flipped[i] ^ (1 << (i % 8)));
      std::ofstream(file, std::ios::binary) << flipped;
      bool fault = true;
      try {
        const Memory memory = Memory::open(path, true);
        fault = !memory.verify().empty();
        const std::string found = everything(memory);
        ASSERT_TRUE(fault || answers.contains(found)) << file << ' ' << i;
      } catch (const reco::Error&) {
      }
      fault ? ++noticed : ++unchanged;
      std::ofstream(file, std::ios::binary) << intact;
      fs::remove(path / "memory.sqlite-shm");
    }
  }
  EXPECT_GT(answers.size() > 1 ? unchanged : noticed, 0);
  std::cout << noticed << " noticed, " << unchanged << " unchanged\n";
}

void write_npy(const fs::path& file, const Matrix& rows) {
  const reco::RowFormat format(reco::Storage::float16, kDim);
  std::string bytes = reco::io::npy_header("<f2", {rows.rows(), kDim});
  std::vector<std::byte> row(static_cast<std::size_t>(format.bytes()));
  for (Eigen::Index i = 0; i < rows.rows(); ++i) {
    format.encode(rows.row(i).data(), row.data());
    bytes.append(reinterpret_cast<const char*>(row.data()), row.size());
  }
  std::ofstream(file, std::ios::binary) << bytes;
}

bool every_byte() { return from_environment("RECO_EVERY_BYTE", 0) != 0; }

}  // namespace

class FlippedIndex : public testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(MemoryProperty, FlippedIndex, testing::Values("HNSW4", "SQ8", "IVF1,SQ8"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), ',', '_');
                           return name;
                         });

TEST_P(FlippedIndex, IsNoticedOrHarmless) {
  const Folder folder;
  std::mt19937 generator(1);
  {
    Memory memory = Memory::create(folder / "m", kDim);
    memory.add(random_rows(5, generator), random_rows(5, generator),
               {.keys = {"a", "b", "c", "d", "e"}, .captions = {}, .metadata = {}});
    memory.optimize({.index = GetParam()});
  }
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder / "m/index")) files.push_back(entry.path());
  ASSERT_EQ(files.size(), 2);
  flip_bytes(folder / "m", files, every_byte() ? 1 : 7);
}

TEST(MemoryProperty, AFlippedByteOfTheLogOrOfAttachedFilesIsNoticedOrHarmless) {
  const Folder folder;
  std::mt19937 generator(1);
  const fs::path path = folder / "m", copy = folder / "copy";
  const std::array<fs::path, 2> attached{folder / "image.npy", folder / "text.npy"};
  for (const fs::path& file : attached) write_npy(file, random_rows(3, generator));
  Memory memory = Memory::create(path, kDim);
  // The log of a killed writer ends for SQLite where it is damaged: what was committed before that is left, no less.
  std::set<std::string> states{everything(memory)};
  memory.add(random_rows(2, generator), random_rows(2, generator),
             {.keys = {"a", "b"}, .captions = {}, .metadata = {}});
  states.insert(everything(memory));
  memory.attach(attached[0], attached[1], {.keys = {"c", "d", "e"}, .captions = {}, .metadata = {}});
  states.insert(everything(memory));
  memory.remove(std::vector<std::string>{"a", "d"});
  fs::copy(path, copy, fs::copy_options::recursive);  // as a killed writer leaves it: all of this is in the log only
  memory.close();
  ASSERT_GT(fs::file_size(copy / "memory.sqlite-wal"), 4'096);
  flip_bytes(copy, {attached[0], attached[1]}, every_byte() ? 1 : 3);
  flip_bytes(copy, {copy / "memory.sqlite-wal"}, every_byte() ? 1 : 131, states);
}
