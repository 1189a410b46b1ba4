// The backward pass of tt_embedding_bag on the CPU that updates the cores.
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/core/Dispatch_v2.h>

#include "tt_lookup.h"

namespace recsys_opt::tt {
namespace {

constexpr int64_t kPieces = 8;  // of a shared core's slices

// Tables with the same cores: each stores its gradients, and their sum updates the cores.
template <typename T>
struct Sharing {
  std::vector<Work<T>*> works;
  CoreUpdate<T> update[kMaxCores];
  Array<T> grads;  // [works, cores one after the other]

  void store_gradients() {
    const Work<T>& first = *works[0];
    int64_t size = 0, at = 0;
    for (int k = 0; k < first.table->d; ++k) size += first.core_size(k);
    grads = Array<T>(static_cast<int64_t>(works.size()) * size);
    for (Work<T>* w : works) {
      for (int k = 0; k < w->table->d; at += w->core_size(k++)) w->grad[k] = grads.data() + at;
    }
  }

  // Whether any table uses slice i of core k, for all i.
  std::vector<char> used(int k) const {
    std::vector<char> result = works[0]->used_slices(k);
    for (size_t m = 1; m < works.size(); ++m) {
      const std::vector<char> more = works[m]->used_slices(k);
      for (size_t i = 0; i < result.size(); ++i) result[i] |= more[i];
    }
    return result;
  }

  void apply(int k, Tensor& core) {
    const Work<T>& first = *works[0];
    const std::vector<char> slices = used(k);
    const int64_t size = first.core_slice(k), n = first.table->n[k];
    const bool reduced = is_reduced(core.scalar_type());
    Array<T> wide(reduced ? n * size : 0);
    if (reduced) update[k].core = wide.data();
    for_each_task(kPieces, [&](int64_t piece) {
      for (int64_t i = n * piece / kPieces; i < n * (piece + 1) / kPieces; ++i) {
        if (!slices[i]) continue;
        T* sum = first.grad[k] + i * size;
        for (size_t m = 1; m < works.size(); ++m) {
          first.kernels->axpy(T(1), works[m]->grad[k] + i * size, sum, size);
        }
        if constexpr (std::is_same_v<T, float>) {
          if (reduced) widen_slice(core, i, size, wide.data());
        }
        update[k].apply(i, sum);
        if constexpr (std::is_same_v<T, float>) {
          if (reduced) narrow_slice(wide.data(), i, size, core);
        }
      }
    });
  }
};

// Rounds the updated slices of bf16 and fp16 cores.
template <typename T>
void narrow_cores(const Work<T>& w, std::vector<Tensor>& cores) {
  if constexpr (std::is_same_v<T, float>) {
    for_each_task(w.table->d, [&](int64_t k) {
      const Widened<T>& wide = w.widened[k];
      for (int64_t i = 0; i < static_cast<int64_t>(wide.used.size()); ++i) {
        if (!wide.used[i]) continue;
        narrow_slice(wide.core.data(), i, w.core_slice(k), cores[w.table->first_core + k]);
      }
    });
  }
}

template <typename T>
void backward_update(Call<T>& call, const UpdateArguments& arguments, std::vector<Tensor>& cores,
                     std::vector<Tensor>& states, const Tensor& hyperparameters,
                     const Tensor& grad) {
  const bool reduced = is_reduced(cores[0].scalar_type());
  const Rule<T> rule = make_rule<T>(arguments.algorithm, hyperparameters.const_data_ptr<double>());
  std::vector<Sharing<T>> owners(call.work.size());
  for (size_t t = 0; t < call.work.size(); ++t) {
    owners[arguments.owner[t]].works.push_back(&call.work[t]);
  }
  for (Sharing<T>& owner : owners) {
    if (owner.works.empty()) continue;
    Work<T>& first = *owner.works[0];
    CoreUpdate<T>* updates = owner.works.size() == 1 ? first.update : owner.update;
    for (int k = 0; k < first.table->d; ++k) {
      const int64_t core = first.table->first_core + k;
      CoreUpdate<T>& update = updates[k];
      T* data = reduced ? first.widened[k].core.data() : cores[core].mutable_data_ptr<T>();
      update = {&rule, data, {}, first.core_slice(k)};
      for (int64_t s = 0; s < arguments.states_per_core; ++s) {
        Tensor& state = states[core * arguments.states_per_core + s];
        update.states[s] = state.mutable_data_ptr<T>();
      }
    }
    if (owner.works.size() > 1) owner.store_gradients();
  }
  run_backward(call, grad.const_data_ptr<T>());
  for (Sharing<T>& owner : owners) {
    if (owner.works.empty()) continue;
    const Table& table = *owner.works[0]->table;
    if (owner.works.size() > 1) {
      for (int k = 0; k < table.d; ++k) owner.apply(k, cores[table.first_core + k]);
    } else if (reduced) {
      narrow_cores(*owner.works[0], cores);
    }
  }
}

// Updates the cores; returns the gradient of the samples' weights where it is wanted.
std::optional<Tensor> backward_update(const Lookup& lookup, const KeptLookup* kept,
                                      bool cores_moved, Tensor grad, bool weights_grad,
                                      std::vector<Tensor>& states, int64_t algorithm,
                                      const Tensor& hyperparameters) {
  std::vector<Tensor> cores = lookup.cores;
  check_grad(grad, lookup.args, cores[0]);
  const UpdateArguments update =
      check_update(lookup.args, cores, states, algorithm, hyperparameters);
  const ScalarType compute = lookup.compute();
  grad = contiguous_as(grad, compute);
  std::optional<Tensor> result;
  if (weights_grad) result = torch::stable::new_zeros(grad, {lookup.args.num_indices});
  THO_DISPATCH_V2(compute, "tt_embedding_bag_backward_update_cpu", AT_WRAP([&] {
                    auto call = backward_call<scalar_t>(lookup, cores, kept);
                    if (cores_moved) {
                      for (Work<scalar_t>& w : call.work) {
                        for (auto& products : w.products) products.reset();
                      }
                    }
                    if (weights_grad) call.want_weight_gradients(*result);
                    backward_update(call, update, cores, states, hyperparameters, grad);
                  }),
                  AT_FLOATING_TYPES);
  if (result) result = contiguous_as(*result, lookup.type());
  return result;
}

Tensor tt_embedding_bag_backward_update_cpu(
    Tensor grad, Tensor indices, Tensor offsets, std::vector<Tensor> cores,
    std::vector<Tensor> states, std::vector<int64_t> cores_per_table,
    std::vector<int64_t> num_embeddings, std::vector<int64_t> pooling_modes,
    std::vector<int64_t> padding_idx, std::optional<Tensor> per_sample_weights, bool weights_grad,
    int64_t algorithm, Tensor hyperparameters) {
  const Lookup lookup(indices, offsets, std::move(cores), cores_per_table, num_embeddings,
                      pooling_modes, padding_idx, per_sample_weights);
  const std::optional<Tensor> result = backward_update(lookup, nullptr, false, grad, weights_grad,
                                                       states, algorithm, hyperparameters);
  return result ? *result : empty_on_cpu({0}, lookup.type());
}

// cores_moved: another lookup has updated the cores since; what was multiplied is not theirs.
std::optional<Tensor> tt_lookup_update_cpu(Tensor kept, Tensor grad, bool weights_grad,
                                           bool cores_moved, std::vector<Tensor> states,
                                           int64_t algorithm, Tensor hyperparameters) {
  const KeptLookup& forward = kept_lookup(kept);
  return backward_update(forward.lookup, &forward, cores_moved, grad, weights_grad, states,
                         algorithm, hyperparameters);
}

}  // namespace
}  // namespace recsys_opt::tt

STABLE_TORCH_LIBRARY_IMPL(recsys_opt, CPU, m) {
  m.impl("tt_embedding_bag_backward_update",
         TORCH_BOX(&recsys_opt::tt::tt_embedding_bag_backward_update_cpu));
  m.impl("tt_lookup_update", TORCH_BOX(&recsys_opt::tt::tt_lookup_update_cpu));
}
