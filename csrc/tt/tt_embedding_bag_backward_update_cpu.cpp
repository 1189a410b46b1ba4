// The backward pass of tt_embedding_bag on the CPU that updates the cores.
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/core/Dispatch_v2.h>

#include "tt_kept.h"
#include "tt_work.h"

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
    std::vector<char> result(works[0]->table->n[k], 0);
    for (const Work<T>* w : works) {
      const TablePlan& plan = *w->plan;
      if (k == w->top()) {
        for (int64_t i = 0; i < plan.rows; ++i) result[plan.row_last[i]] = 1;
      } else if (k == 0 && w->top() > 1) {
        for (int64_t u = 0; u < plan.levels[2].nodes; ++u) result[plan.levels[2].parent_key[u]] = 1;
      } else {
        const Level& level = plan.levels[k + 1];
        for (int64_t g = 0; g < level.groups; ++g) result[level.group_index[g]] = 1;
      }
    }
    return result;
  }

  void apply(int k) const {
    const Work<T>& first = *works[0];
    const std::vector<char> slices = used(k);
    const int64_t size = first.core_slice(k), n = first.table->n[k];
    for_each_task(kPieces, [&](int64_t piece) {
      for (int64_t i = n * piece / kPieces; i < n * (piece + 1) / kPieces; ++i) {
        if (!slices[i]) continue;
        T* sum = first.grad[k] + i * size;
        for (size_t m = 1; m < works.size(); ++m) {
          first.kernels->axpy(T(1), works[m]->grad[k] + i * size, sum, size);
        }
        update[k].apply(i, sum);
      }
    });
  }
};

template <typename T>
void backward_update(Call<T>& call, const UpdateArguments& arguments, std::vector<Tensor>& cores,
                     std::vector<Tensor>& states, const Tensor& hyperparameters,
                     const Tensor& grad) {
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
      update = {&rule, cores[core].mutable_data_ptr<T>(), {}, first.core_slice(k)};
      for (int64_t s = 0; s < arguments.states_per_core; ++s) {
        Tensor& state = states[core * arguments.states_per_core + s];
        update.states[s] = state.mutable_data_ptr<T>();
      }
    }
    if (owner.works.size() > 1) owner.store_gradients();
  }
  run_backward(call, grad.const_data_ptr<T>());
  for (const Sharing<T>& owner : owners) {
    if (owner.works.size() < 2) continue;
    for (int k = 0; k < owner.works[0]->table->d; ++k) owner.apply(k);
  }
}

Tensor backward_update(const Tensor* kept, Tensor grad, Tensor indices, Tensor offsets,
                       std::vector<Tensor>& cores, std::vector<Tensor>& states,
                       const Arguments& args, std::optional<Tensor> per_sample_weights,
                       bool weights_grad, int64_t algorithm, const Tensor& hyperparameters) {
  check_grad(grad, args, cores[0]);
  const UpdateArguments update = check_update(args, cores, states, algorithm, hyperparameters);
  grad = torch::stable::contiguous(grad);
  indices = torch::stable::contiguous(indices);
  offsets = torch::stable::contiguous(offsets);
  if (per_sample_weights) per_sample_weights = torch::stable::contiguous(*per_sample_weights);
  Tensor result = torch::stable::new_zeros(grad, {weights_grad ? args.num_indices : 0});
  THO_DISPATCH_V2(cores[0].scalar_type(), "tt_embedding_bag_backward_update_cpu", AT_WRAP([&] {
                    Call<scalar_t> call(args, indices, offsets, cores, per_sample_weights, true,
                                        kept ? &kept_tables<scalar_t>(*kept, args) : nullptr);
                    if (weights_grad) call.want_weight_gradients(result);
                    backward_update(call, update, cores, states, hyperparameters, grad);
                  }),
                  AT_FLOATING_TYPES);
  return result;
}

Tensor tt_embedding_bag_backward_update_cpu(
    Tensor grad, Tensor indices, Tensor offsets, std::vector<Tensor> cores,
    std::vector<Tensor> states, std::vector<int64_t> cores_per_table,
    std::vector<int64_t> num_embeddings, std::vector<int64_t> pooling_modes,
    std::vector<int64_t> padding_idx, std::optional<Tensor> per_sample_weights, bool weights_grad,
    int64_t algorithm, Tensor hyperparameters) {
  const Arguments args = check_arguments(indices, offsets, cores, cores_per_table, num_embeddings,
                                         pooling_modes, padding_idx, per_sample_weights);
  return backward_update(nullptr, grad, indices, offsets, cores, states, args, per_sample_weights,
                         weights_grad, algorithm, hyperparameters);
}

Tensor tt_embedding_bag_backward_update_kept_cpu(
    Tensor kept, Tensor grad, Tensor indices, Tensor offsets, std::vector<Tensor> cores,
    std::vector<Tensor> states, std::vector<int64_t> cores_per_table,
    std::vector<int64_t> num_embeddings, std::vector<int64_t> pooling_modes,
    std::vector<int64_t> padding_idx, std::optional<Tensor> per_sample_weights, bool weights_grad,
    int64_t algorithm, Tensor hyperparameters) {
  const Arguments args = check_arguments(indices, offsets, cores, cores_per_table, num_embeddings,
                                         pooling_modes, padding_idx, per_sample_weights);
  return backward_update(&kept, grad, indices, offsets, cores, states, args, per_sample_weights,
                         weights_grad, algorithm, hyperparameters);
}

}  // namespace
}  // namespace recsys_opt::tt

STABLE_TORCH_LIBRARY_IMPL(recsys_opt, CPU, m) {
  m.impl("tt_embedding_bag_backward_update",
         TORCH_BOX(&recsys_opt::tt::tt_embedding_bag_backward_update_cpu));
  m.impl("tt_embedding_bag_backward_update_kept",
         TORCH_BOX(&recsys_opt::tt::tt_embedding_bag_backward_update_kept_cpu));
}
