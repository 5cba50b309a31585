// SPDX-License-Identifier: Apache-2.0
#include "reco/evaluation.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <map>

#include "fusion_layer.h"
#include "reco/error.h"
#include "reco/threads.h"

namespace reco {

namespace {

constexpr std::int64_t kRowsAtOnce = 1024;

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
  for (std::int64_t first = 0; first < a.rows(); first += kRowsAtOnce) {
    const auto block = at::matmul(left.narrow(0, first, std::min<std::int64_t>(kRowsAtOnce, a.rows() - first)), right);
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

double mean_recall(std::span<const std::int64_t> labels, const std::vector<std::int64_t>& predictions) {
  std::map<std::int64_t, std::pair<double, double>> classes;  // right, all
  for (std::size_t i = 0; i < labels.size(); ++i) {
    auto& [right, all] = classes[labels[i]];
    right += predictions[i] == labels[i];
    all += 1;
  }
  double sum = 0;
  for (const auto& [label, counts] : classes) sum += counts.first / counts.second;
  return sum / static_cast<double>(classes.size());
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

Retrieval retrieve(const MatrixView& images, const MatrixView& texts, std::span<const std::int64_t> image_of_text) {
  const char* tag = "evaluation.retrieve";
  check_columns(tag, images, texts);
  check_indices(tag, "image_of_text", image_of_text, texts.rows(), images.rows());
  std::vector<std::vector<std::int64_t>> texts_of(static_cast<std::size_t>(images.rows()));
  for (std::size_t j = 0; j < image_of_text.size(); ++j) {
    texts_of[static_cast<std::size_t>(image_of_text[j])].push_back(static_cast<std::int64_t>(j));
  }
  Retrieval out;
  for_blocks(texts, images, [&](std::int64_t first, const auto& scores) {
    for (std::int64_t j = 0; j < scores.rows(); ++j) {
      count(rank_of(scores.row(j), image_of_text[static_cast<std::size_t>(first + j)]), out.image_recall_at_1,
            out.image_recall_at_5, out.image_recall_at_10);
    }
  });
  double with_text = 0;
  for_blocks(images, texts, [&](std::int64_t first, const auto& scores) {
    for (std::int64_t i = 0; i < scores.rows(); ++i) {
      const auto& own = texts_of[static_cast<std::size_t>(first + i)];
      if (own.empty()) continue;
      std::int64_t rank = texts.rows();
      for (const auto j : own) rank = std::min(rank, rank_of(scores.row(i), j));
      count(rank, out.text_recall_at_1, out.text_recall_at_5, out.text_recall_at_10);
      with_text += 1;
    }
  });
  for (auto* value : {&out.image_recall_at_1, &out.image_recall_at_5, &out.image_recall_at_10}) {
    *value /= static_cast<double>(texts.rows());
  }
  for (auto* value : {&out.text_recall_at_1, &out.text_recall_at_5, &out.text_recall_at_10}) *value /= with_text;
  return out;
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
    out.row(i) = embeddings.middleRows(i * templates, templates).colwise().mean().normalized();
  }
  return out;
}

}  // namespace reco
