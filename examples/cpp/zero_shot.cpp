// SPDX-License-Identifier: Apache-2.0
// Names pictures: zero_shot MODEL MEMORY FUSION IMAGE... -- CLASS...
// MODEL is a CLIP folder, MEMORY a memory of its embeddings, FUSION a fusion's file.
#include <reco/reco.h>

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <string>
#include <string_view>
#include <vector>

int main(int argc, char** argv) try {
  char** const end = argv + argc;
  char** const bar = std::find(argv, end, std::string_view("--"));
  if (bar - argv < 5 || end - bar < 2) {
    std::cerr << "usage: zero_shot MODEL MEMORY FUSION IMAGE... -- CLASS...\n";
    return 2;
  }
  const auto clip = reco::Clip::load(argv[1]);
  const auto memory = reco::Memory::open(argv[2], /*read_only=*/true);
  const reco::Model model(clip, memory, reco::Fusion::load(argv[3]), {.k = 10});

  const std::vector<std::filesystem::path> images(argv + 4, bar);
  const std::vector<std::string> classes(bar + 1, end);
  const reco::Matrix scores = model.encode_images(images) * model.encode_texts(classes).transpose();

  for (std::size_t i = 0; i < images.size(); ++i) {
    Eigen::Index best = 0;
    const float score = scores.row(static_cast<Eigen::Index>(i)).maxCoeff(&best);
    std::cout << images[i].string() << '\t' << classes[static_cast<std::size_t>(best)] << '\t' << score << '\n';
  }
  return 0;
} catch (const reco::Error& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
