// SPDX-License-Identifier: Apache-2.0
// Docstrings that carry their signature, as CPython's own functions have it: inspect, help(), editors and documentation
// tools see names and defaults, and the tests compare them with the type stubs.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <utility>

namespace reco::python {

namespace py = pybind11;

/// A default as Python writes it; `...` for what is no literal.
inline std::string literal(const py::handle& value) {
  const bool plain = value.is_none() || PyBool_Check(value.ptr()) || PyLong_Check(value.ptr()) ||
                     PyFloat_Check(value.ptr()) || PyUnicode_Check(value.ptr()) || PyTuple_Check(value.ptr());
  return plain ? py::repr(value).cast<std::string>() : "...";
}

/// Parameters, as a binding's py::arg() and py::kw_only() give them.
class SignatureText {
 public:
  explicit SignatureText(bool method) : parts_(method ? "self" : "") {}

  void add(const py::arg& argument) { part(argument.name); }
  void add(const py::arg_v& argument) { part(std::string(argument.name) + "=" + literal(argument.value)); }
  void add(const py::kw_only&) { part("*"); }
  void add(const char* doc) { doc_ = doc; }
  template <typename Other>
  void add(const Other&) {}  // guards and policies are no parameters

  /// CPython takes what comes before the dashes for the signature.
  std::string text(const char* name) const { return std::string(name) + "(" + parts_ + ")\n--\n\n" + doc_; }

 private:
  void part(const std::string& part) { parts_ += (parts_.empty() ? "" : ", ") + part; }

  std::string parts_;
  std::string doc_;
};

template <typename... Extra>
std::string documented(const char* name, bool method, const Extra&... extra) {
  SignatureText signature(method);
  (signature.add(extra), ...);
  return signature.text(name);
}

/// m.def() with a signature.
template <typename Function, typename... Extra>
void define(py::module_& m, const char* name, Function&& function, const Extra&... extra) {
  m.def(name, std::forward<Function>(function), extra..., documented(name, false, extra...).c_str());
}

/// py::class_ whose methods have signatures.
template <typename... Options>
class Class : public py::class_<Options...> {
  using Base = py::class_<Options...>;

 public:
  using Base::Base;

  template <typename Function, typename... Extra>
  Class& def(const char* name, Function&& function, const Extra&... extra) {
    Base::def(name, std::forward<Function>(function), extra..., documented(name, true, extra...).c_str());
    return *this;
  }
  template <typename Function, typename... Extra>
  Class& def_static(const char* name, Function&& function, const Extra&... extra) {
    Base::def_static(name, std::forward<Function>(function), extra..., documented(name, false, extra...).c_str());
    return *this;
  }
  /// A constructor: py::init() and its kin.
  template <typename Init, typename... Extra>
  Class& def_init(Init&& init, const Extra&... extra) {
    Base::def(std::forward<Init>(init), extra..., documented("__init__", true, extra..., kInit).c_str());
    return *this;
  }
  template <typename... Parts>
  Class& def_property_readonly(const char* name, const Parts&... parts) {
    Base::def_property_readonly(name, parts...);
    return *this;
  }
  template <typename... Parts>
  Class& def_readonly(const char* name, const Parts&... parts) {
    Base::def_readonly(name, parts...);
    return *this;
  }

  /// Pickling by what `get` gives and `set` takes.
  template <typename Get, typename Set>
  Class& def_pickle(Get&& get, Set&& set) {
    Base::def(py::pickle(std::forward<Get>(get), std::forward<Set>(set)));
    return *this;
  }

  /// For what never changes: a copy is the object itself.
  Class& copies_share() {
    def(
        "__copy__", [](const py::object& self) { return self; }, "The same object: it never changes.");
    return def(
        "__deepcopy__", [](const py::object& self, const py::object&) { return self; }, py::arg("memo"),
        "The same object: it never changes.");
  }

 private:
  static constexpr const char* kInit = "See the class.";
};

}  // namespace reco::python
