// SPDX-License-Identifier: Apache-2.0
#include "reco/evaluation.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <numeric>

#include "fusion_layer.h"
#include "parallel.h"
#include "reco/error.h"
#include "reco/interrupt.h"
#include "reco/threads.h"

namespace reco {

namespace {

constexpr std::int64_t kRowsAtOnce = 1024;
constexpr std::int64_t kScoresAtOnce = std::int64_t{1} << 26;  // 256 MB, a second of work on a few cores

at::Tensor tensor(const MatrixView& matrix) { return fusion::view(matrix, {matrix.rows(), matrix.cols()}); }

void check_columns(const char* tag, const MatrixView& a, const MatrixView& b) {
  check(a.rows() > 0 && b.rows() > 0 && a.cols() == b.cols(), tag,
        "expected two matrices with rows and equally many columns, got [", a.rows(), ", ", a.cols(), "] and [",
        b.rows(), ", ", b.cols(), "]");
}

void check_indices(const char* tag, const char* name, std::span<const std::int64_t> values, std::int64_t count,
                   std::int64_t bound) {
  check(static_cast<std::int64_t>(values.size()) == count, tag, "expected ", count, " ", name, ", got ", values.size());
  for (const auto value : values) {
    check(value >= 0 && value < bound, tag, name, " must be from 0 to ", bound - 1, ", got ", value);
  }
}

// Calls visit(first row, scores [rows, columns]) for blocks of rows of a * b^T.
template <typename Visit>
void for_blocks(const MatrixView& a, const MatrixView& b, const Visit& visit) {
  at::set_num_threads(threads());
  const c10::NoGradGuard no_grad;
  const auto left = tensor(a);
  const auto right = tensor(b).t();
  const auto rows = std::clamp<std::int64_t>(kScoresAtOnce / b.rows(), 1, kRowsAtOnce);
  for (std::int64_t first = 0; first < a.rows(); first += rows) {
    check_interrupt();
    const auto block = at::matmul(left.narrow(0, first, std::min<std::int64_t>(rows, a.rows() - first)), right);
    visit(first, Eigen::Map<const Matrix>(block.const_data_ptr<float>(), block.size(0), block.size(1)));
  }
}

// How many of a row's scores are better than that of `column`; of equal ones the lower column counts as better.
template <typename Row>
std::int64_t rank_of(const Row& row, std::int64_t column) {
  const float own = row(column);
  std::int64_t rank = 0;
  for (std::int64_t j = 0; j < row.size(); ++j) rank += row(j) > own || (row(j) == own && j < column);
  return rank;
}

void count(std::int64_t rank, double& at1, double& at5, double& at10) {
  at1 += rank < 1;
  at5 += rank < 5;
  at10 += rank < 10;
}

// In the order in which NumPy sums (pairwise, Higham 1993), so that a mean is NumPy's to the last digit.
double numpy_sum(std::span<const double> values) {
  constexpr std::size_t lanes = 8, block = 128;
  const std::size_t n = values.size();
  if (n > block) {
    const std::size_t half = n / 2 - n / 2 % lanes;
    return numpy_sum(values.first(half)) + numpy_sum(values.subspan(half));
  }
  std::array<double, lanes> r{};
  const std::size_t even = n < lanes ? 0 : n - n % lanes;
  for (std::size_t i = 0; i < even; ++i) r[i % lanes] += values[i];
  const double sum = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
  return std::accumulate(values.begin() + static_cast<std::ptrdiff_t>(even), values.end(), sum);
}

double mean_recall(std::span<const std::int64_t> labels, const std::vector<std::int64_t>& predictions) {
  std::map<std::int64_t, std::pair<double, double>> classes;  // right, all
  for (std::size_t i = 0; i < labels.size(); ++i) {
    auto& [right, all] = classes[labels[i]];
    right += predictions[i] == labels[i];
    all += 1;
  }
  std::vector<double> recalls;
  for (const auto& [label, counts] : classes) recalls.push_back(counts.first / counts.second);
  return numpy_sum(recalls) / static_cast<double>(recalls.size());
}

// Items by their number (of a unit or group); without numbers there is nothing to group by.
struct Numbered {
  std::span<const std::int64_t> numbers;
  std::int64_t count = 0;
};

Numbered by_number(const char* tag, const char* name, std::span<const std::int64_t> numbers, std::int64_t n) {
  if (numbers.empty()) return {};
  const auto most = *std::max_element(numbers.begin(), numbers.end());
  check_indices(tag, name, numbers, n, std::max<std::int64_t>(most, 0) + 1);
  return {numbers, most + 1};
}

// Values in the order of their units, so that a drawn unit is one run of them.
class Draws {
 public:
  Draws(std::span<const double> values, const Numbered& units, const Numbered& groups)
      : groups_(std::max<std::int64_t>(groups.count, 1)) {
    std::vector<std::int64_t> order(values.size());
    std::iota(order.begin(), order.end(), 0);
    const auto unit_of = [&](std::int64_t i) {
      return units.numbers.empty() ? i : units.numbers[static_cast<std::size_t>(i)];
    };
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return unit_of(a) < unit_of(b); });
    for (const auto i : order) {
      if (starts_.empty() || unit_of(i) != last_) starts_.push_back(values_.size());
      last_ = unit_of(i);
      values_.push_back(values[static_cast<std::size_t>(i)]);
      if (groups.count > 0) group_of_.push_back(groups.numbers[static_cast<std::size_t>(i)]);
    }
    starts_.push_back(values_.size());
  }

  // The mean over one resample of as many units as there are.
  double mean(std::uint64_t seed, std::uint64_t resample) const {
    const auto units = starts_.size() - 1;
    std::vector<double> sums(static_cast<std::size_t>(groups_)), counts(sums.size());
    std::uint64_t state = mixed(seed) ^ mixed(~resample);
    for (std::size_t drawn = 0; drawn < units; ++drawn) {
      state += 0x9E3779B97F4A7C15U;
      const auto unit = ((mixed(state) >> 32U) * units) >> 32U;
      for (auto i = starts_[unit]; i < starts_[unit + 1]; ++i) {
        const auto group = group_of_.empty() ? 0 : static_cast<std::size_t>(group_of_[i]);
        sums[group] += values_[i];
        counts[group] += 1;
      }
    }
    double sum = 0, with_values = 0;
    for (std::size_t group = 0; group < sums.size(); ++group) {
      if (counts[group] > 0) sum += sums[group] / counts[group], with_values += 1;
    }
    return sum / with_values;
  }

 private:
  // The finalizer of SplitMix64 (Steele, Lea, Flood 2014): the same numbers on every platform and thread.
  static std::uint64_t mixed(std::uint64_t x) {
    x = (x ^ (x >> 30U)) * 0xBF58476D1CE4E5B9U;
    x = (x ^ (x >> 27U)) * 0x94D049BB133111EBU;
    return x ^ (x >> 31U);
  }

  std::int64_t groups_;
  std::int64_t last_ = -1;
  std::vector<double> values_;
  std::vector<std::int64_t> group_of_;
  std::vector<std::size_t> starts_;
};

// Of sorted values, interpolated between neighbours.
double quantile(const std::vector<double>& sorted, double share) {
  const double place = share * static_cast<double>(sorted.size() - 1);
  const auto low = static_cast<std::size_t>(place);
  const auto high = std::min(low + 1, sorted.size() - 1);
  return sorted[low] + (place - static_cast<double>(low)) * (sorted[high] - sorted[low]);
}

std::string replaced(const std::string& text, const std::string& place, const std::string& name) {
  std::string out;
  std::size_t from = 0;
  for (auto at = text.find(place); at != std::string::npos; at = text.find(place, from)) {
    out += text.substr(from, at - from) + name;
    from = at + place.size();
  }
  return out + text.substr(from);
}

}  // namespace

Classification classify(const MatrixView& images, const MatrixView& classes, std::span<const std::int64_t> labels) {
  const char* tag = "evaluation.classify";
  check_columns(tag, images, classes);
  check_indices(tag, "labels", labels, images.rows(), classes.rows());
  Classification out;
  double at10 = 0;
  for_blocks(images, classes, [&](std::int64_t first, const auto& scores) {
    for (std::int64_t i = 0; i < scores.rows(); ++i) {
      check_interrupt();
      std::int64_t best = 0;
      scores.row(i).maxCoeff(&best);
      out.predictions.push_back(best);
      count(rank_of(scores.row(i), labels[static_cast<std::size_t>(first + i)]), out.acc1, out.acc5, at10);
    }
  });
  out.acc1 /= static_cast<double>(labels.size());
  out.acc5 /= static_cast<double>(labels.size());
  out.mean_per_class_recall = mean_recall(labels, out.predictions);
  return out;
}

Matrix vote(const Neighbors& neighbors, std::span<const std::int64_t> labels, std::int64_t classes, float sharpness) {
  const auto n = neighbors.scores.rows(), k = neighbors.scores.cols();
  check(static_cast<std::int64_t>(labels.size()) == n * k && classes >= 1, "evaluation.vote", "expected ", n * k,
        " labels of one class or more, got ", labels.size(), " and ", classes);
  Matrix out = Matrix::Zero(n, classes);
  for (std::int64_t i = 0; i < n; ++i) {
    check_interrupt();
    const float best = k > 0 ? neighbors.scores.row(i).maxCoeff() : 0.0F;
    float sum = 0;
    for (std::int64_t j = 0; j < k; ++j) {
      const auto label = labels[static_cast<std::size_t>(i * k + j)];
      check(label >= -1 && label < classes, "evaluation.vote", "labels must be from -1 to ", classes - 1, ", got ",
            label);
      if (neighbors.rows(i, j) < 0) continue;
      const float weight = std::exp(sharpness * (neighbors.scores(i, j) - best));
      sum += weight;
      if (label >= 0) out(i, label) += weight;
    }
    if (sum > 0) out.row(i) /= sum;
  }
  return out;
}

Matrix blend(const MatrixView& cosines, const MatrixView& votes, float logit_scale, float weight) {
  check(cosines.rows() == votes.rows() && cosines.cols() == votes.cols(), "evaluation.blend",
        "cosines and votes must have one shape, got [", cosines.rows(), ", ", cosines.cols(), "] and [", votes.rows(),
        ", ", votes.cols(), "]");
  check(weight >= 0 && weight <= 1, "evaluation.blend", "weight must be from 0 to 1, got ", weight);
  Matrix out(cosines.rows(), cosines.cols());
  for (std::int64_t i = 0; i < out.rows(); ++i) {
    check_interrupt();
    const Matrix odds = (logit_scale * (cosines.row(i).array() - cosines.row(i).maxCoeff())).exp();
    out.row(i) = (1 - weight) * odds / odds.sum() + weight * votes.row(i);
  }
  return out;
}

Retrieval retrieve(const MatrixView& images, const MatrixView& texts, std::span<const std::int64_t> image_of_text) {
  const char* tag = "evaluation.retrieve";
  check_columns(tag, images, texts);
  check_indices(tag, "image_of_text", image_of_text, texts.rows(), images.rows());
  Retrieval out;
  for (const auto rank : ranks(texts, images, image_of_text)) {
    count(rank, out.image_recall_at_1, out.image_recall_at_5, out.image_recall_at_10);
  }
  std::vector<std::int64_t> every(image_of_text.size());
  std::iota(every.begin(), every.end(), 0);
  const auto text_ranks = ranks(images, texts, every, image_of_text);
  for (const auto rank : text_ranks) count(rank, out.text_recall_at_1, out.text_recall_at_5, out.text_recall_at_10);
  const auto without = std::count(text_ranks.begin(), text_ranks.end(), texts.rows());
  for (auto* value : {&out.image_recall_at_1, &out.image_recall_at_5, &out.image_recall_at_10}) {
    *value /= static_cast<double>(texts.rows());
  }
  for (auto* value : {&out.text_recall_at_1, &out.text_recall_at_5, &out.text_recall_at_10}) {
    *value /= static_cast<double>(images.rows() - without);
  }
  return out;
}

std::vector<std::int64_t> ranks(const MatrixView& queries, const MatrixView& candidates,
                                std::span<const std::int64_t> targets, std::span<const std::int64_t> target_queries) {
  const char* tag = "evaluation.ranks";
  check_columns(tag, queries, candidates);
  const bool own = target_queries.empty();
  const auto count = own ? queries.rows() : static_cast<std::int64_t>(target_queries.size());
  check_indices(tag, "targets", targets, count, candidates.rows());
  check_indices(tag, "target_queries", target_queries, own ? 0 : count, queries.rows());
  std::vector<std::vector<std::int64_t>> right(static_cast<std::size_t>(queries.rows()));
  for (std::size_t i = 0; i < targets.size(); ++i) {
    right[own ? i : static_cast<std::size_t>(target_queries[i])].push_back(targets[i]);
  }
  std::vector<std::int64_t> out(right.size(), candidates.rows());
  for_blocks(queries, candidates, [&](std::int64_t first, const auto& scores) {
    for (std::int64_t i = 0; i < scores.rows(); ++i) {
      check_interrupt();
      const auto query = static_cast<std::size_t>(first + i);
      for (const auto j : right[query]) out[query] = std::min(out[query], rank_of(scores.row(i), j));
    }
  });
  return out;
}

Interval bootstrap(std::span<const double> values, std::span<const std::int64_t> units,
                   std::span<const std::int64_t> groups, const BootstrapOptions& options) {
  const char* tag = "evaluation.bootstrap";
  const auto n = static_cast<std::int64_t>(values.size());
  check(n > 0 && std::all_of(values.begin(), values.end(), [](double v) { return std::isfinite(v); }), tag,
        "expected one finite value or more, got ", n, " values");
  check(options.resamples >= 1 && options.confidence > 0 && options.confidence < 1, tag,
        "expected resamples of at least 1 and a confidence between 0 and 1, got ", options.resamples, " and ",
        options.confidence);
  const Draws draws(values, by_number(tag, "units", units, n), by_number(tag, "groups", groups, n));
  std::vector<double> means(static_cast<std::size_t>(options.resamples));
  parallel_for(options.resamples, [&](std::int64_t i) {
    means[static_cast<std::size_t>(i)] = draws.mean(options.seed, static_cast<std::uint64_t>(i));
  });
  std::sort(means.begin(), means.end());
  return {quantile(means, (1 - options.confidence) / 2), quantile(means, (1 + options.confidence) / 2)};
}

double harmonic_mean(double a, double b) { return a + b > 0 ? 2 * a * b / (a + b) : 0.0; }

std::vector<std::string> prompts(std::span<const std::string> classnames, std::span<const std::string> templates) {
  std::vector<std::string> out;
  out.reserve(classnames.size() * templates.size());
  for (const auto& prompt : templates) {
    const bool has_place = prompt.find("{}") != std::string::npos || prompt.find("{c}") != std::string::npos;
    check(has_place, "evaluation.prompts", "a template needs {} where the class name goes, got '", prompt, "'");
  }
  for (const auto& name : classnames) {
    for (const auto& prompt : templates) {
      // The name goes in last and once, so that braces in a name stay as they are.
      const bool plain = prompt.find("{}") != std::string::npos;
      out.push_back(replaced(prompt, plain ? "{}" : "{c}", name));
    }
  }
  return out;
}

Matrix average_prompts(const MatrixView& embeddings, std::int64_t templates) {
  check(templates >= 1 && embeddings.rows() % templates == 0, "evaluation.average_prompts", "expected a multiple of ",
        templates, " rows, got ", embeddings.rows());
  Matrix out(embeddings.rows() / templates, embeddings.cols());
  for (std::int64_t i = 0; i < out.rows(); ++i) {
    check_interrupt();
    out.row(i) = embeddings.middleRows(i * templates, templates).colwise().mean().normalized();
  }
  return out;
}

}  // namespace reco
