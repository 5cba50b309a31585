// SPDX-License-Identifier: Apache-2.0
#include "memory_tuner.h"

#include <algorithm>
#include <map>
#include <set>

namespace reco {

namespace {

/// As hard as any index looks.
constexpr std::int64_t kMostEffort = 4'096;

}  // namespace

Tuner::Tuner(const MemorySnapshot& snapshot, const std::vector<std::int64_t>& rows, std::size_t side,
             const OptimizeOptions& options, bool held)
    : snapshot_(snapshot), options_(options), asked_(rows) {
  search_ = {.k = options.k,
             .modality = side == 0 ? Modality::image : Modality::text,
             .excluded = {rows},
             .max_similarity = {},
             .exact = true};
  queries_ = snapshot.gather(rows, search_.modality);
  if (held) {  // each finds the others, but not itself
    search_.excluded.clear();
    for (const std::int64_t row : rows) search_.excluded.push_back({row});
  }
  search_rows(snapshot_, queries_, search_, truth_, scores_);
  if (!held) search_.excluded.clear();
}

Tuner::Identity Tuner::identity(MemoryIndex& index) const {
  Identity identity;
  index.set_effort(kMostEffort, 1);
  const auto nearest = index.nearest(queries_);
  if (asked_.empty() || nearest.empty()) return {.first = 1, .among_ten = 1};
  const Matrix named = snapshot_.gather(nearest, search_.modality);
  constexpr float equal = 0.9999F;  // rounding apart
  std::map<std::int64_t, std::int64_t> shifts;
  std::int64_t first = 0;
  for (std::size_t i = 0; i < asked_.size(); ++i) {
    const auto row = static_cast<Eigen::Index>(i);
    const bool itself = nearest[i] == asked_[i] || named.row(row).dot(queries_.row(row)) >= equal;
    itself ? ++first : ++shifts[nearest[i] - asked_[i]];
  }
  const auto count = static_cast<double>(asked_.size());
  identity.first = static_cast<double>(first) / count;
  for (const auto& [shift, times] : shifts) {
    const double share = static_cast<double>(times) / count;
    if (share > identity.elsewhere) identity.elsewhere = share, identity.shift = shift;
  }
  identity.among_ten = found_among_ten(index);
  return identity;
}

double Tuner::found_among_ten(const MemoryIndex& index) const {
  const MemorySearch search{.k = 10, .modality = search_.modality};
  const QueryGroup group(snapshot_, search, queries_, 0, queries_.rows());
  Candidates best(group);
  index.search(group, best);
  std::int64_t found = 0;
  for (std::int64_t i = 0; i < queries_.rows(); ++i) {
    const auto candidates = best.of(i);
    const std::int64_t asked = asked_[static_cast<std::size_t>(i)];
    found += std::any_of(candidates.begin(), candidates.end(), [&](const Candidate& c) { return c.row == asked; });
  }
  return static_cast<double>(found) / static_cast<double>(queries_.rows());
}

double Tuner::tune(MemoryIndex& index, MemoryIndexFile& file) const {
  const IndexKind kind = index_kind(file.factory);
  std::vector<std::int64_t> refinements{1};
  if (kind.type == IndexKind::Type::faiss) refinements = {1, 2, 4, 8, 16, 32, 64};
  double best_time = 0;
  for (const std::int64_t refine : refinements) {
    MemoryIndexFile tried = file;
    tried.refine = refine;
    const double time = tune_effort(index, tried, kind.type == IndexKind::Type::lists ? kind.parameter : kMostEffort);
    const bool first = refine == 1, reaches = reached(tried), reached_before = reached(file);
    const bool takes_less = reaches == reached_before && reaches && time < best_time;
    if (first || (reaches && !reached_before) || takes_less || (!reaches && tried.recall_ppm > file.recall_ppm)) {
      file = tried;
      best_time = time;
    } else if (reached_before) {
      break;
    }
  }
  index.set_effort(file.effort, file.refine);
  return best_time;
}

bool Tuner::reached(const MemoryIndexFile& file) const {
  return static_cast<double>(file.recall_ppm) >= 1e6 * options_.recall;
}

/// The least of the efforts that reaches the recall, else the greatest.
double Tuner::tune_effort(MemoryIndex& index, MemoryIndexFile& file, std::int64_t most) const {
  std::vector<std::int64_t> efforts;
  for (std::int64_t effort = 1; effort < most; effort += std::max<std::int64_t>(1, effort / 4))
    efforts.push_back(effort);
  efforts.push_back(most);
  const auto least = std::partition_point(efforts.begin(), efforts.end(), [&](std::int64_t effort) {
    return static_cast<double>(recall_ppm(index, effort, file.refine)) < 1e6 * options_.recall;
  });
  file.effort = least == efforts.end() ? most : *least;
  file.recall_ppm = recall_ppm(index, file.effort, file.refine);
  return time_one(index);
}

std::int64_t Tuner::recall_ppm(MemoryIndex& index, std::int64_t effort, std::int64_t refine) const {
  index.set_effort(effort, refine);
  const QueryGroup group(snapshot_, search_, queries_, 0, queries_.rows());
  Candidates best(group);
  index.search(group, best);
  std::int64_t found = 0, all = 0;
  for (std::int64_t i = 0; i < queries_.rows(); ++i) {
    std::set<std::int64_t> rows;
    for (const Candidate& candidate : best.of(i)) rows.insert(candidate.row);
    for (std::int64_t j = 0; j < options_.k && truth_(i, j) >= 0; ++j) all += 1, found += rows.contains(truth_(i, j));
  }
  return all == 0 ? 1'000'000 : found * 1'000'000 / all;
}

double Tuner::time_one(const MemoryIndex& index) const {
  std::vector<double> times;
  for (std::int64_t i = 0; i < std::min<std::int64_t>(queries_.rows(), 64); ++i) {
    const auto start = Clock::now();
    const QueryGroup group(snapshot_, search_, queries_, i, 1);
    Candidates best(group);
    index.search(group, best);
    times.push_back(std::chrono::duration<double>(Clock::now() - start).count());
  }
  if (times.empty()) return 0;
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

}  // namespace reco
