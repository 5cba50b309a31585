// SPDX-License-Identifier: Apache-2.0
// classify MODEL IMAGE CLASS...: prints the best class, then the cosine of each.
#include <reco/reco.h>

#include <filesystem>
#include <iomanip>
#include <iostream>
#include <string>
#include <vector>

int main(int argc, char** argv) try {
  reco::check(argc > 3, "classify", "expected MODEL IMAGE CLASS..., got ", argc - 1, " arguments");
  const auto clip = reco::Clip::load(argv[1]);
  const std::vector<std::filesystem::path> images{argv[2]};
  const std::vector<std::string> classes(argv + 3, argv + argc);
  const reco::Matrix scores = clip.encode_images(images) * clip.encode_texts(classes).transpose();

  Eigen::Index best = 0;
  scores.row(0).maxCoeff(&best);
  std::cout << classes[static_cast<std::size_t>(best)] << '\n' << std::setprecision(9);
  for (const float score : scores.reshaped()) std::cout << score << '\n';
  return 0;
} catch (const reco::Error& error) {
  std::cout << "Error: " << error.what() << '\n';
  return 1;
}
