/*
 * kernels/cuda/attention_cudnn.h over the graph API of cudnn-frontend: scaled dot product
 * attention, causal, scale 1 / sqrt(width). One plan a shape, kept for the life of the handle.
 */
#define NV_CUDNN_FRONTEND_USE_DYNAMIC_LOADING
#include "kernels/cuda/attention_cudnn.h"

#include <cudnn_frontend.h>
#include <dlfcn.h>

#include <cmath>
#include <cstdio>
#include <exception>
#include <memory>
#include <unordered_map>
#include <vector>

namespace fe = cudnn_frontend;

/* The frontend looks every cuDNN function up in this library. */
namespace cudnn_frontend {
void *cudnn_dlhandle = nullptr;
}

namespace {

enum uid : int64_t { Q = 1, K, V, OUT, STATS, OUT_GRADIENT, Q_GRADIENT, K_GRADIENT, V_GRADIENT };

struct plan {
    cudnn_attention_shape shape;
    std::shared_ptr<fe::graph::Graph> graph;
    size_t workspace_bytes;
};

bool same(const cudnn_attention_shape &a, const cudnn_attention_shape &b) {
    return a.batch == b.batch && a.sequence_length == b.sequence_length && a.heads == b.heads &&
           a.head_width == b.head_width && a.dtype == b.dtype && a.backward == b.backward &&
           a.deterministic == b.deterministic;
}

enum status refused(const cudnn_attention_shape &s, const char *reason) {
    return status_set(
        STATUS_DEVICE,
        "cuDNN refuses attention %s with %zu sequences of %zu, %zu heads of "
        "%zu in %s: %s. Choose another model.heads or micro-batch, or precision.recipe = "
        "fp32, which has a kernel of its own",
        s.backward ? "backward" : "forward", s.batch, s.sequence_length, s.heads, s.head_width,
        dtype_name(s.dtype), reason);
}

/* (B, H, T, D) views: heads lie side by side in a row of `row` numbers. */
std::shared_ptr<fe::graph::Tensor_attributes>
heads_tensor(fe::graph::Graph &graph, const cudnn_attention_shape &s, uid id, size_t row) {
    const auto b = (int64_t)s.batch, h = (int64_t)s.heads, t = (int64_t)s.sequence_length,
               d = (int64_t)s.head_width, r = (int64_t)row;
    return graph.tensor(fe::graph::Tensor_attributes()
                            .set_name(std::to_string(id))
                            .set_uid(id)
                            .set_dim({b, h, t, d})
                            .set_stride({t * r, d, r, 1}));
}

void make_output(const std::shared_ptr<fe::graph::Tensor_attributes> &tensor,
                 const cudnn_attention_shape &s, uid id, size_t row) {
    const auto b = (int64_t)s.batch, h = (int64_t)s.heads, t = (int64_t)s.sequence_length,
               d = (int64_t)s.head_width, r = (int64_t)row;
    tensor->set_output(true).set_uid(id).set_dim({b, h, t, d}).set_stride({t * r, d, r, 1});
}

void stats_layout(const std::shared_ptr<fe::graph::Tensor_attributes> &tensor,
                  const cudnn_attention_shape &s) {
    const auto b = (int64_t)s.batch, h = (int64_t)s.heads, t = (int64_t)s.sequence_length;
    tensor->set_uid(STATS).set_data_type(fe::DataType_t::FLOAT);
    tensor->set_dim({b, h, t, 1}).set_stride({h * t, t, 1, 1});
}

void add_forward(fe::graph::Graph &graph, const cudnn_attention_shape &s) {
    const size_t width = s.heads * s.head_width;
    auto q = heads_tensor(graph, s, Q, 3 * width), k = heads_tensor(graph, s, K, 3 * width),
         v = heads_tensor(graph, s, V, 3 * width);
    const float scale = (float)(1.0 / std::sqrt((double)s.head_width));
    auto options = fe::graph::SDPA_attributes().set_name("forward").set_generate_stats(true);
    options.set_causal_mask(true).set_attn_scale(scale);
    auto [out, stats] = graph.sdpa(q, k, v, options);
    make_output(out, s, OUT, width);
    stats->set_output(true);
    stats_layout(stats, s);
}

void add_backward(fe::graph::Graph &graph, const cudnn_attention_shape &s) {
    const size_t width = s.heads * s.head_width;
    auto q = heads_tensor(graph, s, Q, 3 * width), k = heads_tensor(graph, s, K, 3 * width),
         v = heads_tensor(graph, s, V, 3 * width), out = heads_tensor(graph, s, OUT, width),
         out_gradient = heads_tensor(graph, s, OUT_GRADIENT, width);
    auto stats = graph.tensor(fe::graph::Tensor_attributes().set_name("stats"));
    stats_layout(stats, s);
    const float scale = (float)(1.0 / std::sqrt((double)s.head_width));
    auto options = fe::graph::SDPA_backward_attributes().set_name("backward").set_causal_mask(true);
    options.set_attn_scale(scale).set_deterministic_algorithm(s.deterministic);
    auto [dq, dk, dv] = graph.sdpa_backward(q, k, v, out, out_gradient, stats, options);
    make_output(dq, s, Q_GRADIENT, 3 * width);
    make_output(dk, s, K_GRADIENT, 3 * width);
    make_output(dv, s, V_GRADIENT, 3 * width);
}

fe::error_t build(fe::graph::Graph &graph, cudnnHandle_t handle, int64_t *workspace_bytes) {
    fe::error_t e = graph.validate();
    if (e.is_good()) e = graph.build_operation_graph(handle);
    if (e.is_good()) e = graph.create_execution_plans({fe::HeurMode_t::A});
    if (e.is_good()) e = graph.check_support(handle);
    if (e.is_good()) e = graph.build_plans(handle);
    if (e.is_good()) e = graph.get_workspace_size(*workspace_bytes);
    return e;
}

} /* namespace */

struct cudnn_attention {
    cudnnHandle_t handle;
    std::vector<plan> plans;
};

static const plan *find(const cudnn_attention *a, const cudnn_attention_shape &shape) {
    for (const plan &p : a->plans) {
        if (same(p.shape, shape)) return &p;
    }
    return nullptr;
}

extern "C" enum status cudnn_attention_open(struct cudnn_attention **out, cudaStream_t stream,
                                            char why[CUDNN_WHY_BYTES]) {
    *out = nullptr;
    if (fe::cudnn_dlhandle == nullptr)
        fe::cudnn_dlhandle = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_GLOBAL);
    if (fe::cudnn_dlhandle == nullptr) {
        std::snprintf(why, CUDNN_WHY_BYTES,
                      "cuDNN does not load (%s): install libcudnn.so.9 where the loader finds it",
                      dlerror());
        return STATUS_OK;
    }
    cudnnHandle_t handle = nullptr;
    try {
        cudnnStatus_t created = fe::detail::create_handle(&handle);
        if (created == CUDNN_STATUS_SUCCESS) created = fe::detail::set_stream(handle, stream);
        if (created != CUDNN_STATUS_SUCCESS) {
            std::snprintf(why, CUDNN_WHY_BYTES,
                          "cuDNN (libcudnn.so.9) does not start (status %d)", (int)created);
        } else {
            *out = new cudnn_attention{handle, {}};
        }
    } catch (const std::exception &e) {
        std::snprintf(why, CUDNN_WHY_BYTES, "cuDNN (libcudnn.so.9) does not start (%s)", e.what());
    }
    if (*out == nullptr && handle != nullptr) fe::detail::destroy_handle(handle);
    return STATUS_OK;
}

extern "C" void cudnn_attention_close(struct cudnn_attention *a) {
    if (a == nullptr) return;
    a->plans.clear();
    fe::detail::destroy_handle(a->handle);
    delete a;
}

extern "C" enum status cudnn_attention_plan(struct cudnn_attention *a,
                                            const struct cudnn_attention_shape *shape,
                                            size_t *workspace_bytes) {
    try {
        const plan *found = find(a, *shape);
        if (found == nullptr) {
            auto graph = std::make_shared<fe::graph::Graph>();
            graph->set_io_data_type(shape->dtype == DTYPE_BF16 ? fe::DataType_t::BFLOAT16
                                                               : fe::DataType_t::HALF);
            graph->set_intermediate_data_type(fe::DataType_t::FLOAT);
            graph->set_compute_data_type(fe::DataType_t::FLOAT);
            if (shape->backward)
                add_backward(*graph, *shape);
            else
                add_forward(*graph, *shape);
            int64_t bytes = 0;
            fe::error_t e = build(*graph, a->handle, &bytes);
            if (e.is_bad()) return refused(*shape, e.get_message().c_str());
            a->plans.push_back({*shape, graph, (size_t)bytes});
            found = &a->plans.back();
        }
        *workspace_bytes = found->workspace_bytes;
        return STATUS_OK;
    } catch (const std::exception &e) {
        return refused(*shape, e.what());
    }
}

extern "C" size_t cudnn_attention_workspace_bytes(const struct cudnn_attention *a,
                                                  const struct cudnn_attention_shape *shape) {
    const plan *found = find(a, *shape);
    return found == nullptr ? 0 : found->workspace_bytes;
}

extern "C" enum status cudnn_attention_run(struct cudnn_attention *a,
                                           const struct cudnn_attention_shape *shape,
                                           const struct cudnn_attention_data *data) {
    try {
        const plan *found = find(a, *shape);
        if (found == nullptr || found->workspace_bytes > data->workspace_bytes) {
            return status_set(STATUS_INTERNAL, "attention: %s, %zu bytes of working memory",
                              found == nullptr ? "no plan" : "a larger plan",
                              data->workspace_bytes);
        }
        const size_t width = shape->heads * shape->head_width * 2; /* bytes of q in a row */
        char *qkv = (char *)data->qkv, *gradient = (char *)data->qkv_gradient;
        std::unordered_map<int64_t, void *> pack = {{Q, qkv},
                                                    {K, qkv + width},
                                                    {V, qkv + 2 * width},
                                                    {OUT, data->out},
                                                    {STATS, data->log_sum_exp}};
        if (shape->backward) {
            pack[OUT_GRADIENT] = data->out_gradient;
            pack[Q_GRADIENT] = gradient;
            pack[K_GRADIENT] = gradient + width;
            pack[V_GRADIENT] = gradient + 2 * width;
        }
        fe::error_t e = found->graph->execute(a->handle, pack, data->workspace);
        return e.is_good() ? STATUS_OK : refused(*shape, e.get_message().c_str());
    } catch (const std::exception &e) {
        return refused(*shape, e.what());
    }
}
