// A torch tensor as the bindings see it: by its Python attributes, since torch's headers would tie a build to one
// version of torch.

#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>

#include "call.hpp"

namespace normkit {

// A name that is looked up in every call; the string is made once, and stays.
class Name {
   public:
    explicit Name(const char* text) : text_(PyUnicode_InternFromString(text)) {}
    nanobind::object of(nanobind::handle object) const { return got(PyObject_GetAttr(object.ptr(), text_)); }
    nanobind::object called(nanobind::handle object) const {
        PyObject* self = object.ptr();
        return got(PyObject_VectorcallMethod(text_, &self, 1, nullptr));
    }

   private:
    static nanobind::object got(PyObject* result) {
        if (!result) nanobind::raise_python_error();
        return nanobind::steal(result);
    }
    PyObject* text_;
};

struct Tensor {
    nanobind::handle object;

    template <class P>
    P* data() const {
        static const Name name("data_ptr");
        return static_cast<P*>(PyLong_AsVoidPtr(name.called(object).ptr()));
    }
    bool is_contiguous() const {
        static const Name name("is_contiguous");
        return name.called(object).ptr() == Py_True;
    }
    int64_t numel() const {
        static const Name name("numel");
        return PyLong_AsLongLong(name.called(object).ptr());
    }
    nanobind::object shape() const {
        static const Name name("shape");
        return name.of(object);
    }
    nanobind::object stride() const {
        static const Name name("stride");
        return name.called(object);
    }
    DType dtype() const {
        const int found = code(object);
        if (found < 0) throw nanobind::type_error("a dtype that the kernels do not know");
        return DType(found);
    }

    // The dtype of a torch.Tensor or Parameter, and nothing derived from them, in the memory of this process; -1 of
    // others, and of dtypes that the kernels do not know.
    int plain_dtype() const {
        static const nanobind::handle tensor = torch("Tensor"), parameter = torch("nn.Parameter");
        static const Name name("is_cpu");
        const auto type = reinterpret_cast<PyObject*>(Py_TYPE(object.ptr()));
        const bool plain = (type == tensor.ptr() || type == parameter.ptr()) && name.of(object).ptr() == Py_True;
        return plain ? code(object) : -1;
    }
    // Values are what memory holds.
    bool is_dense() const {
        static const nanobind::handle strided = torch("strided");
        static const Name layout("layout"), is_zero("_is_zerotensor");
        return layout.of(object).is(strided) && !is_negated() && is_zero.called(object).ptr() == Py_False;
    }
    bool is_negated() const {
        static const Name name("is_neg");
        return name.called(object).ptr() != Py_False;
    }
    // What counts batches, which is written in place.
    int64_t* counter(const char* called) const {
        static const nanobind::handle int64 = torch("int64");
        static const Name dtype("dtype"), device("device"), is_cpu("is_cpu");
        if (dtype.of(object).is(int64) && is_cpu.of(object).ptr() == Py_True) return data<int64_t>();
        const std::string found = nanobind::str(dtype.of(object)).c_str(), where = nanobind::str(device.of(object)).c_str();
        throw std::runtime_error(std::string(called) + " must be a tensor of torch.int64 on the cpu, where the input is, got " +
                                 found + " on " + where + ": move or convert it with .to()");
    }

   private:
    // What a dotted name of torch stands for; it lives as long as torch does.
    static nanobind::handle torch(const char* path) {
        nanobind::object found = nanobind::module_::import_("torch");
        for (std::string rest = path; !rest.empty();) {
            const size_t dot = std::min(rest.find('.'), rest.size());
            found = found.attr(rest.substr(0, dot).c_str());
            rest.erase(0, dot + 1);
        }
        return found.release();
    }
    static int code(nanobind::handle tensor) {  // -1: none of the kernels'
        static const Name name("dtype");
        static const nanobind::handle known[] = {torch("float32"), torch("float64"), torch("bfloat16"),
                                                 torch("float16")};
        const nanobind::object dtype = name.of(tensor);
        for (int i = 0; i < 4; ++i) {
            if (dtype.is(known[i])) return i;
        }
        return -1;
    }
};

using Maybe = std::optional<Tensor>;

}  // namespace normkit

template <>
struct nanobind::detail::type_caster<normkit::Tensor> {
    NB_TYPE_CASTER(normkit::Tensor, const_name("Tensor"))
    bool from_python(handle source, uint32_t, cleanup_list*) noexcept {
        value = {source};
        return true;
    }
};
