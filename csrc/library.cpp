// Schemas of every recsys_opt op. Kernels register themselves per device in <area>/<op>_cpu.cpp and
// <area>/<op>_cuda.cu; shapes (fake kernels) and autograd are registered in recsys_opt/ops/, and
// recsys_opt/reference.py says in plain torch what each op computes.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(recsys_opt, m) {
  // interaction/
  m.def("dot_interaction(Tensor dense, Tensor[] sparse, int[] order) -> Tensor");
  m.def(
      "dot_interaction_backward(Tensor grad, Tensor dense, Tensor[] sparse, int[] order) -> "
      "Tensor[]");
  // dense/
  m.def(
      "dense_bag(Tensor[] weights, Tensor indices, Tensor? offsets, Tensor? per_sample_weights, "
      "int[] mean) -> Tensor");
  m.def(
      "dense_bag_row_gradients(Tensor grad, Tensor[] weights, Tensor indices, Tensor? offsets, "
      "Tensor? per_sample_weights, int[] mean) -> Tensor");
  m.def(
      "dense_bag_factor_gradients(Tensor grad, Tensor[] weights, Tensor indices, Tensor? offsets, "
      "Tensor per_sample_weights) -> Tensor");
  m.def(
      "dense_bag_backward_update(Tensor grad, Tensor(a!)[] weights, Tensor(b!)[] states, "
      "Tensor indices, Tensor? offsets, Tensor? per_sample_weights, int[] mean, "
      "bool factors_grad, int algorithm, Tensor hyperparameters) -> Tensor");
  m.def(
      "adagrad_(Tensor(a!)[] parameters, Tensor(b!)[] states, Tensor[] grads, float lr, float eps) "
      "-> ()");
  m.def("sgd_rows_(Tensor(a!)[] weights, Tensor[] ids, Tensor[] grads, float lr) -> ()");
  m.def(
      "rowwise_adagrad_rows_(Tensor(a!)[] weights, Tensor(b!)[] states, Tensor[] ids, Tensor[] "
      "grads, float lr, float eps) -> ()");
  // tiered/
  m.def(
      "tiered_bag(Tensor[] hot, Tensor[] cold, Tensor[] remaps, Tensor indices, Tensor? offsets, "
      "Tensor? per_sample_weights, int[] mean) -> (Tensor, Tensor)");
  m.def(
      "tiered_bag_factor_gradients(Tensor grad, Tensor[] hot, Tensor[] cold, Tensor positions, "
      "Tensor? offsets, Tensor per_sample_weights) -> Tensor");
  m.def(
      "tiered_bag_backward_update(Tensor grad, Tensor(a!)[] hot, Tensor(b!)[] cold, "
      "Tensor(c!)[] hot_states, Tensor(d!)[] cold_states, Tensor positions, Tensor? offsets, "
      "Tensor? per_sample_weights, int[] mean, bool factors_grad, int algorithm, "
      "Tensor hyperparameters) -> Tensor");
  m.def(
      "tiered_ask_ahead(Tensor[] hot, Tensor[] cold, Tensor[] remaps, Tensor[] cold_states, "
      "Tensor indices, Tensor? offsets, int[] mapped) -> ()");
  // hot_rows/
  m.def(
      "hot_rows_split(Tensor indices, Tensor? offsets, Tensor[] keys, Tensor[] directories, int[] "
      "num_embeddings, int[] padding_idx) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("hot_rows_directory_(Tensor(a!) directory, Tensor keys) -> ()");
  m.def(
      "hot_rows_count_(Tensor(a!)[] hot_counts, Tensor(b!)[] counts, Tensor(c!)[] candidates, "
      "Tensor indices, Tensor slots, Tensor? offsets, int[] num_embeddings, int stride, int phase) "
      "-> ()");
  m.def(
      "hot_rows_bag(Tensor base, Tensor[] weights, Tensor slots, Tensor? offsets, Tensor? "
      "per_sample_weights, int[] mean) -> Tensor");
  m.def(
      "hot_rows_bag_row_gradients(Tensor grad, Tensor[] weights, Tensor slots, Tensor? offsets, "
      "Tensor? per_sample_weights, int[] mean) -> Tensor[]");
  m.def(
      "hot_rows_bag_base_gradient(Tensor grad, Tensor[] weights, Tensor slots, Tensor? offsets, "
      "int[] mean) -> Tensor");
  m.def(
      "hot_rows_bag_factor_gradients(Tensor grad, Tensor[] weights, Tensor slots, Tensor? offsets) "
      "-> Tensor");
  // dhe/
  m.def(
      "dhe_encode(Tensor ids, Tensor hashes, int num_embeddings, int prime, int buckets, "
      "int encoding, Tensor like, Tensor? positions=None, int table=0) -> Tensor");
  m.def(
      "dhe_embedding_bag(Tensor indices, Tensor? offsets, Tensor[] hashes, Tensor[] weights, "
      "Tensor[] biases, int[] tables, Tensor? per_sample_weights, bool keep) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "dhe_embedding_bag_backward(Tensor grad, Tensor indices, Tensor? offsets, Tensor distinct, "
      "Tensor slots, Tensor counts, Tensor hidden, Tensor[] hashes, Tensor[] weights, "
      "Tensor[] biases, int[] tables, Tensor? per_sample_weights, bool factors_grad) -> Tensor[]");
  // tt
  m.def(
      "tt_embedding_bag(Tensor indices, Tensor offsets, Tensor[] cores, int[] cores_per_table, "
      "int[] num_embeddings, int[] pooling_modes, int[] padding_idx, Tensor? per_sample_weights) "
      "-> "
      "Tensor");
  m.def(
      "tt_embedding_bag_backward(Tensor grad, Tensor indices, Tensor offsets, Tensor[] cores, "
      "int[] cores_per_table, int[] num_embeddings, int[] pooling_modes, int[] padding_idx, "
      "Tensor? per_sample_weights, bool weights_grad) -> Tensor[]");
  m.def(
      "tt_embedding_bag_backward_update(Tensor grad, Tensor indices, Tensor offsets, "
      "Tensor(a!)[] cores, Tensor(b!)[] states, int[] cores_per_table, int[] num_embeddings, "
      "int[] pooling_modes, int[] padding_idx, Tensor? per_sample_weights, bool weights_grad, "
      "int algorithm, Tensor hyperparameters) -> Tensor");
  // The same for eager mode on the CPU, with nn.EmbeddingBag's forms of a batch; the forward pass
  // hands the backward pass what it found out. Each list of arguments costs time: tables holds
  // cores_per_table, num_embeddings, pooling_modes and padding_idx, one after the other.
  m.def(
      "tt_lookup(Tensor indices, Tensor? offsets, bool include_last_offset, Tensor[] cores, "
      "int[] tables, Tensor? per_sample_weights, bool keep) -> (Tensor, Tensor?)");
  m.def("tt_lookup_backward(Tensor kept, Tensor grad, bool weights_grad) -> Tensor[]");
  m.def(
      "tt_lookup_update(Tensor kept, Tensor grad, bool weights_grad, bool cores_moved, "
      "Tensor(a!)[] states, int algorithm, Tensor hyperparameters) -> Tensor?");
  m.def(
      "tt_prefix_bag(Tensor indices, Tensor? offsets, Tensor[] prefixes, Tensor[] lasts, "
      "int[] num_embeddings, int[] pooling_modes, int[] padding_idx, Tensor? per_sample_weights, "
      "bool include_last_offset) -> Tensor");
  m.def("tt_limit_isa(int widest) -> int");
  m.def("tt_allow_bf16(bool allowed) -> bool");
  m.def("tt_cuda_setting(str name, int value) -> int");
  m.def("tt_bounds_report(int device) -> int[]");
}
