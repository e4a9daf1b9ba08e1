// An exported network from C++: runs model.so once, and prints what it answers.
//
//   g++ -std=c++17 -O2 deploy.cc -I$TVM/include -I$FFI/include -L$TVM/lib -L$FFI/lib \
//       -Wl,--no-as-needed -ltvm_runtime -ltvm_ffi -o deploy
//   TVM_NUM_THREADS=2 LD_LIBRARY_PATH=$TVM/lib:$FFI/lib ./deploy model.so 1 3 32 32 < image.f32
//
// $TVM and $FFI: on this machine the folders of the Python packages tvm and tvm_ffi; for a phone or
// a board those of a build of TVM's runtime for it (docs/devices.md). The numbers are the shape of
// the input as structure.json has it; standard input holds that many floats, prepared as
// 'preprocessing' there says. TVM_NUM_THREADS: the threads that the library was measured with
// ('library' there).

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>

#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <vector>

namespace ffi = tvm::ffi;

// Where the input lies: generated code wants it aligned to 64 bytes.
struct AlignedMemory {
  void AllocData(DLTensor* tensor) {
    size_t bytes = sizeof(float);
    for (int i = 0; i < tensor->ndim; ++i) bytes *= tensor->shape[i];
    tensor->data = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "deploy MODEL.so SHAPE... < IMAGE\n";
    return 2;
  }
  std::vector<int64_t> shape;
  for (int i = 2; i < argc; ++i) shape.push_back(std::atoll(argv[i]));

  // Once: the library, and the virtual machine in it (device type, device number, pooled memory).
  ffi::Module library = ffi::Module::LoadFromFile(argv[1]);
  ffi::Module machine = (*library->GetFunction("vm_load_executable"))().cast<ffi::Module>();
  (*machine->GetFunction("vm_initialization"))(static_cast<int>(kDLCPU), 0, 2);
  ffi::Function network = *machine->GetFunction("main");

  // For each image.
  ffi::Tensor input = ffi::Tensor::FromNDAlloc(AlignedMemory(), ffi::Shape(shape),
                                               DLDataType{kDLFloat, 32, 1}, DLDevice{kDLCPU, 0});
  if (!std::cin.read(static_cast<char*>(input.data_ptr()), input.numel() * sizeof(float))) {
    std::cerr << "standard input holds less than " << input.numel() << " floats\n";
    return 1;
  }
  ffi::Tensor logits = network(input).cast<ffi::Array<ffi::Tensor>>()[0];  // its only output

  const float* values = static_cast<const float*>(logits.data_ptr());
  for (int64_t i = 0; i < logits.numel(); ++i) std::cout << values[i] << "\n";
  return 0;
}
