// A torch tensor as the bindings see it: by its Python attributes, since torch's headers would tie a build to one
// version of torch.

#pragma once

#include <nanobind/nanobind.h>

#include <optional>

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
    DType dtype() const {
        static const Name name("dtype");
        return code(name.of(object));
    }

   private:
    static DType code(nanobind::handle dtype);
};

using Maybe = std::optional<Tensor>;

inline DType Tensor::code(nanobind::handle dtype) {
    const auto torch = [](const char* name) {
        return nanobind::object(nanobind::module_::import_("torch").attr(name)).release();  // lives as long as torch does
    };
    static const nanobind::handle known[] = {torch("float32"), torch("float64"), torch("bfloat16"), torch("float16")};
    for (int i = 0; i < 4; ++i) {
        if (dtype.is(known[i])) return DType(i);
    }
    throw nanobind::type_error("a dtype that the kernels do not know");
}

}  // namespace normkit

template <>
struct nanobind::detail::type_caster<normkit::Tensor> {
    NB_TYPE_CASTER(normkit::Tensor, const_name("Tensor"))
    bool from_python(handle source, uint32_t, cleanup_list*) noexcept {
        value = {source};
        return true;
    }
};
