// SPDX-License-Identifier: Apache-2.0
// Searches a memory while it changes: live_memory MODEL MEMORY FOLDER
// FOLDER holds pictures, each with its caption beside it (sun.webp, sun.txt); MEMORY is made, it must not be there yet.
#include <reco/reco.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <future>
#include <iostream>
#include <random>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;
using Row = Eigen::Index;

struct Pairs {
  std::vector<fs::path> files;
  std::vector<std::string> captions;
  reco::Matrix images, texts;  // [n, dim]
};

Pairs read(const reco::Clip& clip, const fs::path& folder) {
  Pairs pairs;
  for (const auto& entry : fs::directory_iterator(folder)) {
    auto text = entry.path();
    if (text.extension() != ".txt" && fs::exists(text.replace_extension(".txt"))) pairs.files.push_back(entry.path());
  }
  std::sort(pairs.files.begin(), pairs.files.end());
  for (auto file : pairs.files) {
    std::ifstream text(file.replace_extension(".txt"));
    std::getline(text, pairs.captions.emplace_back());
  }
  pairs.images = clip.encode_images(pairs.files);
  pairs.texts = clip.encode_texts(pairs.captions);
  return pairs;
}

std::string key(const Pairs& pairs, Row i) { return pairs.files[static_cast<std::size_t>(i)].stem().string(); }

void add(reco::Memory& memory, const Pairs& pairs, Row first, Row count) {
  reco::RowInfo info;
  for (Row i = first; i < first + count; ++i) {
    info.keys.push_back(key(pairs, i));
    info.captions.push_back(pairs.captions[static_cast<std::size_t>(i)]);
  }
  memory.add(pairs.images.middleRows(first, count), pairs.texts.middleRows(first, count), info);
}

/// Whether the picture's own pair is among its five nearest.
bool finds(const reco::Memory& memory, const Pairs& pairs, Row i) {
  const auto found = memory.search(pairs.images.row(i), {.k = 5, .partners = false});
  const auto keys = memory.keys({found.rows.data(), 5});
  return std::find(keys.begin(), keys.end(), key(pairs, i)) != keys.end();
}

/// Looks up random pictures until it is told to stop; the milliseconds that each search took.
std::vector<double> search_until(const std::atomic<bool>& stop, const reco::Memory& memory, const reco::Matrix& images,
                                 unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_int_distribution<Row> any(0, images.rows() - 1);
  std::vector<double> times;
  while (!stop) {
    const auto start = std::chrono::steady_clock::now();
    memory.search(images.row(any(random)), {.k = 5});
    times.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  return times;
}

void run(const fs::path& model, const fs::path& folder, const fs::path& pictures) {
  const auto clip = reco::Clip::load(model);
  const Pairs pairs = read(clip, pictures);
  auto memory = reco::Memory::create(folder, clip.dim(), clip.fingerprint());
  const Row half = pairs.images.rows() / 2;
  add(memory, pairs, 0, half);

  reco::set_threads(1);  // each search below has a thread of its own
  std::atomic<bool> stop = false;
  std::vector<std::future<std::vector<double>>> searchers;
  for (unsigned seed = 0; seed < 4; ++seed) {
    searchers.push_back(
        std::async(std::launch::async, [&, seed] { return search_until(stop, memory, pairs.images, seed); }));
  }

  int added = 0, found = 0, removed = 0, still_found = 0;
  for (Row i = half; i < pairs.images.rows(); ++i, ++added) {
    add(memory, pairs, i, 1);  // on disk, and seen by all threads, when it returns
    found += finds(memory, pairs, i);
  }
  for (Row i = 0; i < half; ++i, ++removed) {
    memory.remove(std::vector{key(pairs, i)});
    still_found += finds(memory, pairs, i);
  }
  stop = true;

  std::vector<double> times;
  for (auto& searcher : searchers) {
    const auto own = searcher.get();
    times.insert(times.end(), own.begin(), own.end());
  }
  std::sort(times.begin(), times.end());
  std::cout << "added " << added << ", found at once " << found << "\nremoved " << removed << ", found since "
            << still_found << "\nleft " << memory.size() << "\nsearches beside it " << times.size();
  if (!times.empty()) {
    std::cout << ", median " << times[times.size() / 2] << " ms, 99th percentile " << times[times.size() * 99 / 100]
              << " ms";
  }
  std::cout << '\n';
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 4) {
    std::cerr << "usage: live_memory MODEL MEMORY FOLDER\n";
    return 2;
  }
  run(argv[1], argv[2], argv[3]);
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
