// SPDX-License-Identifier: Apache-2.0
#include "linear.h"

#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>
#include <string_view>
#include <utility>

namespace reco {

namespace {

// LibTorch's oneDNN layers have no C++ function of their own: they are found by name, and missing or refusing where
// this build or processor cannot use them.
using Scalars = c10::List<std::optional<at::Scalar>>;
using Pack = at::Tensor(const at::Tensor&, std::optional<std::int64_t>);
using Product = at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, std::string_view,
                           Scalars, std::optional<std::string_view>);
using Sum = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                       std::string_view);

template <typename Signature>
c10::TypedOperatorHandle<Signature> find(const char* name, const char* overload) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, overload).typed<Signature>();
}

at::Tensor pack(const at::Tensor& weight) {
  static const auto op = find<Pack>("mkldnn::_reorder_linear_weight", "");
  return op.call(weight, std::nullopt);
}

at::Tensor product(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, std::string_view activation,
                   std::optional<std::string_view> algorithm = std::nullopt) {
  static const auto op = find<Product>("mkldnn::_linear_pointwise", "");
  return op.call(x, weight, bias, activation, Scalars(), algorithm);
}

at::Tensor sum(const at::Tensor& base, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  static const auto op = find<Sum>("mkldnn::_linear_pointwise", "binary");
  return op.call(x, base, weight, bias, "add");
}

bool try_packed(at::ScalarType dtype) {
  try {
    const at::Tensor x = at::ones({16, 16}, dtype), weight = pack(x), bias = at::ones({16}, dtype);
    const at::Tensor out = sum(product(x, weight, bias, "swish"), x, weight, bias);
    return out.select(0, 0).select(0, 0).item<float>() == 34.0F;
  } catch (const c10::Error&) {
    return false;
  }
}

bool can_pack(const at::TensorOptions& options) {
  static const bool float32 = try_packed(at::kFloat), bfloat16 = try_packed(at::kBFloat16);
  return options.device().is_cpu() && (options.dtype() == at::kFloat ? float32 : bfloat16);
}

void activate(at::Tensor& x, Activation activation) {
  switch (activation) {
    case Activation::quick_gelu:
    case Activation::silu:
      at::silu_(x);
      break;
    case Activation::gelu:
      at::gelu_(x, "none");
      break;
    case Activation::gelu_tanh:
      at::gelu_(x, "tanh");
      break;
    case Activation::relu:
      at::relu_(x);
      break;
  }
}

std::pair<std::string_view, std::optional<std::string_view>> name_of(Activation activation) {
  switch (activation) {
    case Activation::gelu:
      return {"gelu", "none"};
    case Activation::gelu_tanh:
      return {"gelu", "tanh"};
    case Activation::relu:
      return {"relu", std::nullopt};
    default:
      return {"swish", std::nullopt};
  }
}

}  // namespace

Linear::Linear(const at::Tensor& weight, const at::Tensor& bias, const at::TensorOptions& options)
    : weight_(can_pack(options) ? pack(weight.to(options)) : weight.to(options, false, /*copy=*/true)),
      bias_(bias.to(options, false, /*copy=*/true)) {}

at::Tensor Linear::operator()(const at::Tensor& x) const {
  return weight_.is_mkldnn() ? product(x, weight_, bias_, "none") : at::addmm(bias_, x, weight_.t());
}

at::Tensor Linear::activated(const at::Tensor& x, Activation activation) const {
  if (weight_.is_mkldnn()) {
    const auto [name, algorithm] = name_of(activation);
    return product(x, weight_, bias_, name, algorithm);
  }
  at::Tensor out = (*this)(x);
  activate(out, activation);
  return out;
}

at::Tensor Linear::plus(const at::Tensor& base, const at::Tensor& x) const {
  return weight_.is_mkldnn() ? sum(base, x, weight_, bias_) : at::addmm(base, x, weight_.t()).add_(bias_);
}

}  // namespace reco
