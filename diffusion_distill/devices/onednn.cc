// Convolutions, their gradients and matrix products by oneDNN, for XLA on CPU. See onednn.py.

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using dnnl::memory;

namespace {

using Dims = memory::dims;
using Numbers = ffi::Span<const int64_t>;
using Arguments = std::unordered_map<int, memory>;
enum Kind { kForward, kInputGradient, kKernelGradient };

// One argument as XLA has it and as the primitive wants it, with a copy between where they differ.
struct Argument {
  int name;  // oneDNN's
  memory given, wanted;
  bool differs;
  dnnl::reorder copy;

  Argument(int name, const memory::desc& has, const memory::desc& wants,
           const dnnl::engine& engine, bool is_result = false)
      : name(name), given(has, engine, nullptr), differs(has != wants) {
    wanted = differs ? memory(wants, engine) : given;
    if (differs) copy = is_result ? dnnl::reorder(wanted, given) : dnnl::reorder(given, wanted);
  }
};

// An operation on given shapes: what is asked of oneDNN once and run many times.
struct Operation {
  dnnl::primitive primitive;
  Argument first, second, result;
};

// [N, H, W, C] as oneDNN names dimensions, N C H W.
Dims Images(Numbers d) { return {d[0], d[3], d[1], d[2]}; }
// [H, W, I, O] as O I H W.
Dims Kernel(Numbers d) { return {d[3], d[2], d[0], d[1]}; }

memory::data_type Type(ffi::DataType type) {
  return type == ffi::DataType::BF16 ? memory::data_type::bf16 : memory::data_type::f32;
}

Operation MakeConvolution(const dnnl::engine& engine, Kind kind, int64_t stride,
                          const Dims& before, const Dims& after, const Dims& x,
                          const Dims& kernel, const Dims& y, memory::data_type type) {
  using Tag = memory::format_tag;
  // Pixels stay as they are; a kernel is small, and is brought to the layout that oneDNN likes.
  const memory::desc x_has(x, type, Tag::nhwc), y_has(y, type, Tag::nhwc);
  const memory::desc kernel_has(kernel, type, Tag::hwio), kernel_wants(kernel, type, Tag::any);
  const Dims strides = {stride, stride};
  const auto direct = dnnl::algorithm::convolution_direct;

  const dnnl::convolution_forward::primitive_desc forward(
      engine, dnnl::prop_kind::forward_training, direct, x_has, kernel_wants, y_has, strides,
      before, after);
  if (kind == kForward) {
    return {dnnl::convolution_forward(forward),
            {DNNL_ARG_SRC, x_has, forward.src_desc(), engine},
            {DNNL_ARG_WEIGHTS, kernel_has, forward.weights_desc(), engine},
            {DNNL_ARG_DST, y_has, forward.dst_desc(), engine, true}};
  }
  if (kind == kInputGradient) {
    const dnnl::convolution_backward_data::primitive_desc backward(
        engine, direct, x_has, kernel_wants, y_has, strides, before, after, forward);
    return {dnnl::convolution_backward_data(backward),
            {DNNL_ARG_DIFF_DST, y_has, backward.diff_dst_desc(), engine},
            {DNNL_ARG_WEIGHTS, kernel_has, backward.weights_desc(), engine},
            {DNNL_ARG_DIFF_SRC, x_has, backward.diff_src_desc(), engine, true}};
  }
  const dnnl::convolution_backward_weights::primitive_desc backward(
      engine, direct, x_has, kernel_wants, y_has, strides, before, after, forward);
  return {dnnl::convolution_backward_weights(backward),
          {DNNL_ARG_SRC, x_has, backward.src_desc(), engine},
          {DNNL_ARG_DIFF_DST, y_has, backward.diff_dst_desc(), engine},
          {DNNL_ARG_DIFF_WEIGHTS, kernel_has, backward.diff_weights_desc(), engine, true}};
}

// A matrix product [..., M, K] x [..., K, N] -> [..., M, N], of arrays that lie by strides.
Operation MakeProduct(const dnnl::engine& engine, const Dims& first, const Dims& second,
                      const Dims& result, const Dims& first_strides, const Dims& second_strides,
                      const Dims& result_strides, memory::data_type type,
                      memory::data_type result_type) {
  const memory::desc a(first, type, first_strides), b(second, type, second_strides);
  const memory::desc c(result, result_type, result_strides);
  const dnnl::matmul::primitive_desc product(engine, a, b, c);
  return {dnnl::matmul(product),
          {DNNL_ARG_SRC, a, product.src_desc(), engine},
          {DNNL_ARG_WEIGHTS, b, product.weights_desc(), engine},
          {DNNL_ARG_DST, c, product.dst_desc(), engine, true}};
}

// What `make` makes, once for each key, on these data.
ffi::Error Run(const std::vector<int64_t>& key,
               const std::function<Operation(const dnnl::engine&)>& make, void* first,
               void* second, void* result) {
  static std::mutex mutex;  // one at a time: each uses all threads
  static dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  static dnnl::stream stream(engine);
  static std::map<std::vector<int64_t>, Operation> made;
  const std::lock_guard<std::mutex> lock(mutex);
  try {
    auto found = made.find(key);
    if (found == made.end()) found = made.emplace(key, make(engine)).first;
    Operation& operation = found->second;
    Arguments arguments;
    const auto give = [&](Argument& argument, void* data) {
      argument.given.set_data_handle(data);
      arguments.insert({argument.name, argument.wanted});
    };
    give(operation.first, first);
    give(operation.second, second);
    give(operation.result, result);
    for (Argument* argument : {&operation.first, &operation.second}) {
      if (argument->differs) argument->copy.execute(stream, argument->given, argument->wanted);
    }
    operation.primitive.execute(stream, arguments);
    Argument& out = operation.result;
    if (out.differs) out.copy.execute(stream, out.wanted, out.given);
    stream.wait();
  } catch (const dnnl::error& error) {
    return ffi::Error::Internal(std::string("oneDNN: ") + error.what());
  }
  return ffi::Error::Success();
}

ffi::Error Convolve(ffi::AnyBuffer first, ffi::AnyBuffer second, ffi::Result<ffi::AnyBuffer> result,
                    int64_t kind_number, int64_t stride, Numbers padding) {
  const auto kind = static_cast<Kind>(kind_number);
  const auto a = first.dimensions(), b = second.dimensions(), c = result->dimensions();
  const auto x = kind == kInputGradient ? c : a;
  const auto kernel = kind == kKernelGradient ? c : b;
  const auto y = kind == kForward ? c : kind == kInputGradient ? a : b;
  std::vector<int64_t> key = {kind_number, stride, static_cast<int64_t>(first.element_type())};
  for (const auto& part : {padding, a, b, c}) key.insert(key.end(), part.begin(), part.end());
  const auto make = [&](const dnnl::engine& engine) {
    return MakeConvolution(engine, kind, stride, {padding[0], padding[2]},
                           {padding[1], padding[3]}, Images(x), Kernel(kernel), Images(y),
                           Type(first.element_type()));
  };
  return Run(key, make, first.untyped_data(), second.untyped_data(), result->untyped_data());
}

// `sizes` and strides are those of MakeProduct, of all three arrays one after the other.
ffi::Error Multiply(ffi::AnyBuffer first, ffi::AnyBuffer second, ffi::Result<ffi::AnyBuffer> result,
                    Numbers sizes, Numbers strides) {
  std::vector<int64_t> key = {-1, static_cast<int64_t>(first.element_type()),
                              static_cast<int64_t>(result->element_type())};
  for (const auto& part : {sizes, strides}) key.insert(key.end(), part.begin(), part.end());
  const auto make = [&](const dnnl::engine& engine) {
    const size_t rank = sizes.size() / 3;
    const auto part = [&](Numbers of, size_t n) {
      return Dims(of.begin() + n * rank, of.begin() + (n + 1) * rank);
    };
    return MakeProduct(engine, part(sizes, 0), part(sizes, 1), part(sizes, 2), part(strides, 0),
                       part(strides, 1), part(strides, 2), Type(first.element_type()),
                       Type(result->element_type()));
  };
  return Run(key, make, first.untyped_data(), second.untyped_data(), result->untyped_data());
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(convolve, Convolve,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<int64_t>("kind")
                                  .Attr<int64_t>("stride")
                                  .Attr<Numbers>("padding"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(multiply, Multiply,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<Numbers>("sizes")
                                  .Attr<Numbers>("strides"));
