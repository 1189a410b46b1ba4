#pragma once
// The check that all tensors of a call are on one device. The dispatcher picks a kernel by one of
// them; that kernel would take another's address for one in its own device's memory.
#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <vector>

namespace recsys_opt {

inline std::string device_name(const torch::stable::Device& device) {
  using torch::headeronly::DeviceType;
  const std::string index = device.index() < 0 ? "" : ":" + std::to_string(device.index());
  switch (device.type()) {
    case DeviceType::CPU:
      return "cpu";
    case DeviceType::CUDA:
      return "cuda" + index;
    case DeviceType::Meta:
      return "meta";
    default:
      return "a device of type " + std::to_string(static_cast<int>(device.type())) + index;
  }
}

class OneDevice {
 public:
  using Tensor = torch::stable::Tensor;

  // The first tensor, by which the others are judged.
  OneDevice(const char* op, const char* name, const Tensor& first)
      : op_(op), name_(name), device_(first.device()) {}

  const OneDevice& with(const char* name, const Tensor& tensor) const {
    if (tensor.device() != device_) refuse(name, tensor);
    return *this;
  }
  const OneDevice& with(const char* name, const std::optional<Tensor>& tensor) const {
    return tensor ? with(name, *tensor) : *this;
  }
  const OneDevice& with(const char* name, const std::vector<Tensor>& tensors) const {
    for (size_t i = 0; i < tensors.size(); ++i) {
      if (tensors[i].device() == device_) continue;
      refuse(std::string(name) + "[" + std::to_string(i) + "]", tensors[i]);
    }
    return *this;
  }

 private:
  void refuse(const std::string& name, const Tensor& tensor) const {
    STD_TORCH_CHECK(false, op_, ": ", name, " is on ", device_name(tensor.device()), ", ", name_,
                    " on ", device_name(device_),
                    "; all tensors of a call must be on one device: move them with .to()");
  }

  const char* op_;
  const char* name_;
  torch::stable::Device device_;
};

}  // namespace recsys_opt
