// SPDX-License-Identifier: Apache-2.0
// A struct of options as a Python class: keyword arguments set its fields, attributes read them; it prints itself,
// compares, and can be pickled.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "helpers.h"

namespace reco::python {

template <typename Config>
class Options {
 public:
  Options(const char* name, const char* doc) : name_(name), doc_(doc) {}

  template <typename Value>
  Options& field(const char* name, Value Config::*member, const char* doc) {
    return field(
        name, [member](const Config& config) { return py::cast(config.*member); },
        [member](Config& config, const py::handle& value) { config.*member = py::cast<Value>(value); }, doc);
  }

  /// A field that Python sees as something else.
  Options& field(const char* name, std::function<py::object(const Config&)> get,
                 std::function<void(Config&, const py::handle&)> set, const char* doc) {
    fields_.push_back({name, std::move(get), std::move(set), doc});
    return *this;
  }

  /// Makes the class, whose fields may be set afterwards if it is `mutable_`. `validate`, if any, throws what is wrong.
  Class<Config> define(py::module_& m, const std::function<void(const Config&)>& validate, bool mutable_ = false) {
    const std::string signature = parameters();
    Class<Config> type(m, name_, (std::string(name_) + "(" + signature + ")\n--\n\n" + doc_).c_str());
    const auto make = [fields = fields_, validate](const py::kwargs& given) { return read(fields, given, validate); };
    py::class_<Config>& base = type;
    base.def(py::init(make), ("__init__(self, " + signature + ")\n--\n\nSee the class.").c_str());
    for (const Field& field : fields_) add_property(type, field, mutable_);
    const auto values = [fields = fields_](const Config& config) { return write(fields, config); };
    type.def(
        "__repr__", [name = name_, values](const Config& self) { return print(name, values(self), values(Config{})); },
        "The call that makes it; fields that are not named have their defaults.");
    type.def(
        "__eq__",
        [values](const Config& self, const py::object& other) -> py::object {
          if (!py::isinstance<Config>(other)) return py::reinterpret_borrow<py::object>(Py_NotImplemented);
          return py::bool_(values(self).equal(values(other.cast<const Config&>())));
        },
        py::arg("other"), "Whether all fields are equal.");
    type.attr("__hash__") = py::none();
    type.def_pickle(values,
                    [fields = fields_, validate](const py::dict& given) { return read(fields, given, validate); });
    return type;
  }

 private:
  struct Field {
    const char* name;
    std::function<py::object(const Config&)> get;
    std::function<void(Config&, const py::handle&)> set;
    const char* doc;
  };
  using Fields = std::vector<Field>;

  /// Keyword-only parameters, with the defaults of C++.
  std::string parameters() const {
    std::string text = "*";
    for (const Field& field : fields_) text += std::string(", ") + field.name + "=" + literal(field.get(Config{}));
    return text;
  }

  static void add_property(Class<Config>& type, const Field& field, bool mutable_) {
    if (!mutable_) {
      type.def_property_readonly(field.name, field.get, field.doc);
      return;
    }
    type.def_property(
        field.name, field.get, [field](Config& config, const py::object& value) { set(field, config, value); },
        field.doc);
  }

  static void set(const Field& field, Config& config, const py::handle& value) {
    try {
      field.set(config, value);
    } catch (const py::cast_error&) {
      throw py::type_error(std::string("wrong type for '") + field.name + "': " + std::string(py::str(value)));
    }
  }

  static Config read(const Fields& fields, const py::dict& given, const std::function<void(const Config&)>& validate) {
    Config config;
    for (const auto& [key, value] : given) {
      const auto name = py::cast<std::string>(key);
      const auto found = std::find_if(fields.begin(), fields.end(), [&](const Field& f) { return name == f.name; });
      if (found == fields.end()) throw py::type_error("unexpected keyword argument '" + name + "'");
      set(*found, config, value);
    }
    if (validate) validate(config);
    return config;
  }

  static py::dict write(const Fields& fields, const Config& config) {
    py::dict values;
    for (const Field& field : fields) values[field.name] = field.get(config);
    return values;
  }

  static std::string print(const char* name, const py::dict& values, const py::dict& defaults) {
    std::string text;
    for (const std::pair<py::handle, py::handle> item : values) {
      if (item.second.equal(defaults[item.first])) continue;
      const std::string separator = text.empty() ? "" : ", ";
      text += separator + std::string(py::str(item.first)) + "=" + std::string(py::repr(item.second));
    }
    return std::string(name) + "(" + text + ")";
  }

  const char* name_;
  const char* doc_;
  Fields fields_;
};

}  // namespace reco::python
