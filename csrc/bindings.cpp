// splip._C: keywords from Python to the fields of the argument structs (fields.h): tensors by their
// addresses, sizes, numbers. Python has checked everything but the names.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>

#include "common.h"
#include "fields.h"

namespace py = pybind11;

namespace splip {
namespace {

// Where a tensor lives: device -1 is the CPU, with its threads; else a GPU, with its stream.
struct Where {
  int64_t device = -1;
  void* stream = nullptr;
  int64_t threads = 1;
};

template <typename Visit>
constexpr void visit_fields(Where& a, Visit&& field) {
  field("device", a.device);
  field("stream", a.stream);
  field("threads", a.threads);
}

// The same of what only GPUs do.
struct WhichGpu {
  int64_t device = -1;
  void* stream = nullptr;
};

template <typename Visit>
constexpr void visit_fields(WhichGpu& a, Visit&& field) {
  field("device", a.device);
  field("stream", a.stream);
}

// ---- one Python value to one field ----

template <typename T>
void convert(PyObject* value, T*& out) {
  out = static_cast<T*>(PyLong_AsVoidPtr(value));
}
void convert(PyObject* value, int64_t& out) { out = PyLong_AsLongLong(value); }
void convert(PyObject* value, float& out) { out = static_cast<float>(PyFloat_AsDouble(value)); }
template <typename T>
std::enable_if_t<std::is_enum_v<T>> convert(PyObject* value, T& out) {
  out = static_cast<T>(PyLong_AsLong(value));
}
void convert(PyObject* value, float (&out)[kMaxChannels]) {
  const auto values = py::cast<std::vector<float>>(py::handle(value));
  SPLIP_CHECK(values.size() <= kMaxChannels, "at most ", kMaxChannels, " channels");
  std::copy(values.begin(), values.end(), out);
}

// The names of a struct's fields as Python's own strings, which its keywords are, too: looked up by
// address, and made once.
template <typename Args>
const std::vector<PyObject*>& names_of() {
  static const auto* const names = [] {
    auto* made = new std::vector<PyObject*>;  // as long as the interpreter
    Args a{};
    visit_fields(a, [&](const char* name, auto&, Need = Need::required) {
      made->push_back(PyUnicode_InternFromString(name));
    });
    return made;
  }();
  return *names;
}

// Fills the fields that the keywords name, and returns how many that were.
template <typename Args>
Py_ssize_t fill(Args& args, const py::kwargs& given) {
  const PyObject* const* name = names_of<Args>().data();
  Py_ssize_t found = 0;
  visit_fields(args, [&](const char* text, auto& field, Need need = Need::required) {
    PyObject* value = PyDict_GetItemWithError(given.ptr(), const_cast<PyObject*>(*name++));
    if (value != nullptr) {
      ++found;
      convert(value, field);
    } else if (need == Need::required && PyErr_Occurred() == nullptr) {
      throw py::type_error(detail::concat("missing argument: ", text));
    }
    if (PyErr_Occurred() != nullptr) {
      throw py::type_error(detail::concat(text, ": ", py::error_already_set().what()));
    }
  });
  return found;
}

// The first keyword that no struct has.
template <typename... Args>
[[noreturn]] void refuse_unknown(const py::kwargs& given) {
  for (const auto& item : given) {
    bool known = false;
    const auto look = [&](const std::vector<PyObject*>& names) {
      for (PyObject* name : names) known = known || py::handle(name).equal(item.first);
    };
    (look(names_of<Args>()), ...);
    if (!known) {
      throw py::type_error(
          detail::concat("unknown argument: ", py::cast<std::string>(py::str(item.first))));
    }
  }
  throw py::type_error("an argument was given twice");
}

// The keywords of a call, in two structs, and nothing else.
template <typename Args, typename Place>
void fill_both(Args& args, Place& place, const py::kwargs& given) {
  const Py_ssize_t found = fill(args, given) + fill(place, given);
  if (found != static_cast<Py_ssize_t>(given.size())) refuse_unknown<Args, Place>(given);
}

template <typename Args>
void run(const py::kwargs& given, void (*cpu)(const Args&, int),
         void (*cuda)(const Args&, int, void*)) {
  Args args{};
  Where where;
  fill_both(args, where, given);
  const py::gil_scoped_release release;
  if (where.device < 0) {
    cpu(args, static_cast<int>(std::max<int64_t>(1, where.threads)));
  } else {
    cuda(args, static_cast<int>(where.device), where.stream);
  }
}

#ifdef SPLIP_HAS_CUDA
constexpr bool kHasCuda = true;
#define SPLIP_CUDA_OP(op) cuda::op
#else
constexpr bool kHasCuda = false;
#define SPLIP_CUDA_OP(op) no_cuda
template <typename Args>
void no_cuda(const Args&, int, void*) {
  throw std::runtime_error("splip was built without its CUDA kernels");
}
#endif

template <typename Args>
void cpu_only(const Args&, int, void*) {
  throw std::runtime_error("packed galleries are for the CPU");
}

#ifdef SPLIP_HAS_CUDA
template <typename Args>
void run_on_gpu(const py::kwargs& given, void (*cuda)(const Args&, int, void*)) {
  Args args{};
  WhichGpu gpu;
  fill_both(args, gpu, given);
  const py::gil_scoped_release release;
  cuda(args, static_cast<int>(gpu.device), gpu.stream);
}
#endif

// What the build has, and the limits that splip.ops goes by.
void add_constants(py::module_& m) {
  m.attr("version") = SPLIP_VERSION;
  m.attr("has_cuda") = kHasCuda;
  m.attr("layernorm_chunks") = kLayerNormChunks;
  m.attr("max_channels") = kMaxChannels;
#ifdef SPLIP_HAS_CUDA
  m.attr("cuda_toolkit") = SPLIP_CUDA_TOOLKIT;
  m.attr("cuda_archs") = SPLIP_CUDA_ARCHS;
  m.attr("cuda_max_k") = cuda::kMaxK;
  m.attr("cuda_max_queries") = cuda::kMaxQueries;
  m.attr("cuda_max_width") = cuda::kMaxWidth;
  m.attr("cuda_norm_bytes") = cuda::kNormBytes;
  m.attr("cuda_norm_gradients") = cuda::kNormGradients;
  m.attr("cuda_stream_queries") = cuda::kStreamQueries;
  m.attr("cuda_narrow_queries") = cuda::kNarrowQueries;
#else
  for (const char* text : {"cuda_toolkit", "cuda_archs"}) m.attr(text) = "";
  for (const char* limit : {"cuda_max_k", "cuda_max_queries", "cuda_max_width", "cuda_norm_bytes",
                            "cuda_norm_gradients", "cuda_stream_queries", "cuda_narrow_queries"}) {
    m.attr(limit) = 0;
  }
#endif
}

// What the machine has, and the choice of the CPU's kernels.
void add_machine(py::module_& m) {
#ifdef SPLIP_HAS_CUDA
  m.def("cuda_has_wgmma", cuda::has_wgmma);
  m.def("cuda_devices", cuda::devices);
#else
  m.def("cuda_has_wgmma", [](int) { return false; });
  m.def("cuda_devices", [] { return std::vector<std::string>(); });
#endif
  m.def("instruction_sets", cpu::instruction_sets);
  m.def("levels", cpu::levels);
  m.def("isa", cpu::isa);
  m.def("set_isa", cpu::set_isa);
}

void add_ops(py::module_& m) {
  m.def("prompt_layernorm", [](const py::kwargs& given) {
    run<PromptLayerNorm>(given, cpu::prompt_layernorm, SPLIP_CUDA_OP(prompt_layernorm));
  });
  m.def("prompt_layernorm_backward", [](const py::kwargs& given) {
    run<PromptLayerNormBackward>(given, cpu::prompt_layernorm_backward,
                                 SPLIP_CUDA_OP(prompt_layernorm_backward));
  });
  m.def("patchify", [](const py::kwargs& given) {
    run<Patchify>(given, cpu::patchify, SPLIP_CUDA_OP(patchify));
  });
  m.def("patchify_backward", [](const py::kwargs& given) {
    run<PatchifyBackward>(given, cpu::patchify_backward, SPLIP_CUDA_OP(patchify_backward));
  });
  m.def("cosine_topk", [](const py::kwargs& given) {
    run<CosineTopk>(given, cpu::cosine_topk, SPLIP_CUDA_OP(cosine_topk));
  });
  m.def("pack_gallery",
        [](const py::kwargs& given) { run<PackGallery>(given, cpu::pack_gallery, cpu_only); });
  m.def("packed_topk",
        [](const py::kwargs& given) { run<PackedTopk>(given, cpu::packed_topk, cpu_only); });
#ifdef SPLIP_HAS_CUDA
  m.def("cosine_topk_keys",
        [](const py::kwargs& given) { run_on_gpu<CosineTopkKeys>(given, cuda::cosine_topk_keys); });
#endif
}

// Bytes of scratch memory (prompt_layernorm: floats), by the ops' names.
void add_scratch_sizes(py::module_& m) {
  using py::arg;
#ifdef SPLIP_HAS_CUDA
  m.def("prompt_layernorm_scratch", cuda::prompt_layernorm_scratch, py::kw_only(), arg("B"),
        arg("L"), arg("P"), arg("G"), arg("D"), arg("R"), arg("device"));
#endif
  m.def(
      "cosine_topk_scratch",
      [](int64_t Q, int64_t N, int64_t D, int64_t K, int device, int threads,
         [[maybe_unused]] int scan, [[maybe_unused]] int64_t pitch) -> int64_t {
        if (device < 0) return cpu::cosine_topk_scratch(Q, N, D, K, std::max(1, threads));
#ifdef SPLIP_HAS_CUDA
        return cuda::cosine_topk_scratch(Q, N, K, static_cast<TopkScan>(scan), pitch);
#else
        throw std::runtime_error("splip was built without its CUDA kernels");
#endif
      },
      py::kw_only(), arg("Q"), arg("N"), arg("D"), arg("K"), arg("device") = -1, arg("threads") = 1,
      arg("scan") = 0, arg("pitch") = 0);
  m.def("packed_panel_bytes", cpu::packed_panel_bytes, arg("N"), arg("D"));
  m.def(
      "pack_gallery_scratch",
      [](int64_t D, int threads) { return cpu::pack_gallery_scratch(D, std::max(1, threads)); },
      py::kw_only(), arg("D"), arg("threads"));
  m.def(
      "packed_topk_scratch",
      [](int64_t Q, int64_t D, int64_t K, int threads) {
        return cpu::packed_topk_scratch(Q, D, K, std::max(1, threads));
      },
      py::kw_only(), arg("Q"), arg("D"), arg("K"), arg("threads"));
}

}  // namespace
}  // namespace splip

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of splip; use splip.ops.";
  splip::add_constants(m);
  splip::add_machine(m);
  splip::add_ops(m);
  splip::add_scratch_sizes(m);
}
