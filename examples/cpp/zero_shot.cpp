// SPDX-License-Identifier: Apache-2.0
// Names a picture: zero_shot MODEL MEMORY FUSION IMAGE CLASS...
#include <reco/reco.h>

#include <filesystem>
#include <iostream>
#include <string>
#include <vector>

int main(int argc, char** argv) try {
  if (argc < 6) {
    std::cerr << "usage: zero_shot MODEL MEMORY FUSION IMAGE CLASS...\n";
    return 2;
  }
  const auto clip = reco::Clip::load(argv[1]);
  const auto memory = reco::Memory::open(argv[2], /*read_only=*/true);
  const reco::Model model(clip, memory, reco::Fusion::load(argv[3]), {.k = 10});

  const std::vector<std::filesystem::path> images{argv[4]};
  const std::vector<std::string> classes(argv + 5, argv + argc);
  const reco::Matrix scores = model.encode_images(images) * model.encode_texts(classes).transpose();

  Eigen::Index best = 0;
  scores.row(0).maxCoeff(&best);
  std::cout << classes[best] << '\n';
  return 0;
} catch (const reco::Error& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
