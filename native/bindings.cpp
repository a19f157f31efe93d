// What Python calls. Tensors come as addresses, which cost a tenth of a microsecond; `cierzo.ops.native` checks their
// shapes, types and layout. What matrices, tables and layers say of themselves is checked here.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <new>
#include <stdexcept>
#include <utility>

#include "encoder.h"
#include "fused.h"
#include "isa.h"
#include "pack.h"
#include "pool.h"
#include "repack.h"
#include "sample.h"

namespace nb = nanobind;
using namespace nb::literals;
using cierzo::Matrix;
using cierzo::Tables;

namespace {

template <class T = float>
T* at(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

void check(bool right, const char* what) {
    if (!right) throw std::invalid_argument(what);
}

cierzo::Cache cache(uintptr_t k, uintptr_t v, int type) {
    check(type >= 0 && type <= int(cierzo::CacheType::int8), "no such type of cache");
    return {at<void>(k), at<void>(v), cierzo::CacheType(type)};
}

// Of matrices that take the same activations.
void check_spans(const Matrix& a, const Matrix& b, const char* what) {
    check(a.inputs == b.inputs && cierzo::span_of(a.format) == cierzo::span_of(b.format), what);
}

void check_attention(const Tables& tables, size_t n_rows, int n_heads, int n_kv_heads, int head_dim, int64_t window) {
    check(n_kv_heads > 0 && head_dim > 0 && n_heads % n_kv_heads == 0 && window >= 0, "heads or window do not fit");
    check(int64_t(n_rows) == tables.n_rows, "block tables of another step");
    for (const Tables::Sequence& s : tables.sequences) {
        const int64_t oldest = window ? std::max<int64_t>(0, s.position - window + 1) : 0;
        check(s.first_block * tables.block_size <= oldest, "block tables begin after the oldest visible key");
    }
}

// The layers of a model over one cache.
struct Layers {
    cierzo::Shape shape;
    std::vector<cierzo::Layer> layers;

    void add(uintptr_t attention_norm, uintptr_t ffn_norm, const Matrix& wq, const Matrix& wk, const Matrix& wv,
             const Matrix& wo, const Matrix& w1, const Matrix& w2, const Matrix& w3, uintptr_t k, uintptr_t v, int type,
             int64_t window, size_t group) {
        const size_t dim = wq.inputs, heads = size_t(shape.n_heads) * shape.head_dim,
                     kv = size_t(shape.n_kv_heads) * shape.head_dim;
        check(wq.outputs == heads && wk.outputs == kv && wv.outputs == kv && wk.inputs == dim && wv.inputs == dim &&
                  wo.inputs == heads && wo.outputs == dim && w1.inputs == dim && w3.inputs == dim &&
                  w1.outputs == w3.outputs && w2.inputs == w1.outputs && w2.outputs == dim && shape.head_dim % 2 == 0,
              "the matrices of a layer do not fit");
        for (const auto& [a, b] : {std::pair{&wq, &wk}, {&wq, &wv}, {&w1, &w3}})
            check_spans(*a, *b, "the formats of a layer's matrices do not fit");
        check(layers.empty() || layers[0].wq->inputs == dim, "the layers do not fit");
        layers.push_back({at(attention_norm), at(ffn_norm), &wq, &wk, &wv, &wo, &w1, &w2, &w3, cache(k, v, type), window,
                          group});
    }

    void run(uintptr_t x, size_t n_rows, const std::vector<const Tables*>& groups, uintptr_t cos, uintptr_t sin) const {
        for (const cierzo::Layer& l : layers) {
            check(l.group < groups.size() && groups[l.group], "no block tables for a layer");
            check_attention(*groups[l.group], n_rows, shape.n_heads, shape.n_kv_heads, shape.head_dim, l.window);
        }
        cierzo::run_layers(at(x), n_rows, layers, shape, groups, at(cos), at(sin));
    }
};

// The layers of an encoder.
struct Encoder {
    size_t n_heads;
    float eps;
    std::vector<cierzo::EncoderLayer> layers;

    void add(const Matrix& qkv, uintptr_t qkv_bias, const Matrix& out, uintptr_t out_bias, const Matrix& up,
             uintptr_t up_bias, const Matrix& down, uintptr_t down_bias, uintptr_t attention_norm, uintptr_t ffn_norm) {
        const size_t dim = qkv.inputs;
        check(dim % n_heads == 0 && qkv.outputs == 3 * dim && out.inputs == dim && out.outputs == dim && up.inputs == dim &&
                  down.inputs == up.outputs && down.outputs == dim,
              "the matrices of a layer do not fit");
        check(layers.empty() || (layers[0].qkv->inputs == dim && layers[0].up->outputs == up.outputs), "the layers do not fit");
        layers.push_back({&qkv, &out, &up, &down, at(qkv_bias), at(out_bias), at(up_bias), at(down_bias),
                          at(attention_norm), at(ffn_norm)});
    }

    void run(uintptr_t x, size_t n_rows, uintptr_t means) const {
        check(n_rows > 0 && !layers.empty(), "an encoder reads something with some layers");
        cierzo::encode(at(x), n_rows, layers, n_heads, eps, at(means));
    }
};

}  // namespace

NB_MODULE(_native, m) {
    const nb::call_guard<nb::gil_scoped_release> free_gil;

    m.attr("SPAN") = cierzo::kSpan;

    m.def("candidates", [] {  // name and why it cannot run here, best first
        std::vector<std::pair<std::string, std::string>> all;
        for (const cierzo::Candidate& candidate : cierzo::candidates())
            all.emplace_back(candidate.table->name, candidate.against);
        return all;
    });
    m.def("isa", [] { return std::string(cierzo::kernels().name); });
    m.def("use", &cierzo::use, "name"_a);
    m.def("set_threads", &cierzo::Pool::set_threads, "n"_a);
    m.def("threads", [] { return cierzo::Pool::get()->size(); });

    nb::class_<Matrix>(m, "Matrix")
        .def(nb::init<uintptr_t, size_t, int, size_t, size_t>(), "data"_a, "bytes"_a, "format"_a, "outputs"_a, "inputs"_a)
        .def_ro("outputs", &Matrix::outputs)
        .def_ro("inputs", &Matrix::inputs);

    m.def("repack", [](int blocks, uintptr_t raw, size_t bytes, const Matrix& shape) {
        // The matrix is nobody else's yet: it was made for this.
        return cierzo::repack(blocks, at<const uint8_t>(raw), bytes, shape, const_cast<uint8_t*>(shape.data));
    }, free_gil);

    m.def("pack", [](uintptr_t weights, size_t n_rows, size_t first, const Matrix& shape) {
        return cierzo::pack(at<const float>(weights), n_rows, first, shape, const_cast<uint8_t*>(shape.data));
    }, free_gil);

    m.def("best_steps", [](uintptr_t weights, uintptr_t importance, uintptr_t scales, size_t n, uintptr_t steps) {
        cierzo::best_steps(at(weights), at(importance), at(scales), n, at<uint8_t>(steps));
    }, free_gil);

    nb::class_<Tables>(m, "Tables")
        .def(nb::init<int64_t, int64_t, std::vector<int64_t>, std::vector<int64_t>, std::vector<int64_t>,
                      std::vector<int32_t>>(),
             "block_size"_a, "n_blocks"_a, "rows"_a, "firsts"_a, "ends"_a, "blocks"_a)
        .def_ro("n_rows", &Tables::n_rows);

    m.def("rotation", [](uintptr_t positions, size_t n, uintptr_t frequencies, size_t half, uintptr_t cos, uintptr_t sin) {
        cierzo::rotation(at<const int64_t>(positions), n, at(frequencies), half, at(cos), at(sin));
    }, free_gil);
    m.def("project_qkv", [](uintptr_t x, size_t n_rows, uintptr_t norm, float eps, const Matrix& wq, const Matrix& wk,
                            const Matrix& wv, uintptr_t cos, uintptr_t sin, size_t head_dim, const Tables& tables,
                            uintptr_t k, uintptr_t v, int type, uintptr_t q) {
        check_spans(wq, wk, "q and k do not fit");
        check_spans(wq, wv, "q and v do not fit");
        check(wk.outputs == wv.outputs, "k and v do not fit");
        check(head_dim > 0 && head_dim % 2 == 0 && wq.outputs % head_dim == 0 && wk.outputs % head_dim == 0,
              "head_dim does not divide q or k");
        check(int64_t(n_rows) == tables.n_rows, "block tables of another step");
        cierzo::project_qkv(at(x), n_rows, at(norm), eps, wq, wk, wv, at(cos), at(sin), head_dim, tables,
                            cache(k, v, type), at(q));
    }, free_gil);
    m.def("attend", [](uintptr_t q, size_t n_rows, int n_heads, int n_kv_heads, int head_dim, int64_t window,
                       const Tables& tables, uintptr_t k, uintptr_t v, int type, uintptr_t out) {
        check_attention(tables, n_rows, n_heads, n_kv_heads, head_dim, window);
        cierzo::attend(at(q), at(out), n_heads, n_kv_heads, head_dim, window, tables, cache(k, v, type));
    }, free_gil);
    nb::class_<Layers>(m, "Layers")
        .def("__init__", [](Layers* self, int n_heads, int n_kv_heads, int head_dim, float eps) {
            check(n_heads > 0 && n_kv_heads > 0 && n_heads % n_kv_heads == 0 && head_dim > 0, "heads do not fit");
            new (self) Layers{{n_heads, n_kv_heads, head_dim, eps}, {}};
        }, "n_heads"_a, "n_kv_heads"_a, "head_dim"_a, "eps"_a)
        .def("add", &Layers::add)
        .def("run", &Layers::run, free_gil);
    nb::class_<Encoder>(m, "Encoder")
        .def("__init__", [](Encoder* self, size_t n_heads, float eps) {
            check(n_heads > 0, "heads do not fit");
            new (self) Encoder{n_heads, eps, {}};
        }, "n_heads"_a, "eps"_a)
        .def("add", &Encoder::add)
        .def("run", &Encoder::run, free_gil);
    m.def("linear", [](uintptr_t x, size_t n_rows, uintptr_t norm, float eps, const Matrix& w, uintptr_t residual,
                       uintptr_t out) {
        cierzo::linear(at(x), n_rows, at(norm), eps, w, at(residual), at(out));
    }, free_gil);
    m.def("gate_up", [](uintptr_t x, size_t n_rows, uintptr_t norm, float eps, const Matrix& w1, const Matrix& w3,
                        uintptr_t out) {
        check_spans(w1, w3, "gate and up do not fit");
        check(w1.outputs == w3.outputs, "gate and up do not fit");
        cierzo::gate_up(at(x), n_rows, at(norm), eps, w1, w3, at(out));
    }, free_gil);
    m.def("mixture", [](uintptr_t x, size_t n_rows, uintptr_t norm, float eps, uintptr_t gate,
                        const std::vector<std::tuple<const Matrix*, const Matrix*, const Matrix*>>& weights,
                        size_t n_chosen, uintptr_t out) {
        std::vector<cierzo::Expert> experts;
        for (const auto& [w1, w2, w3] : weights) {
            check(w1 && w2 && w3, "an expert has three matrices");
            experts.push_back({w1, w2, w3});
            const cierzo::Expert& first = experts[0];
            check_spans(*first.w1, *w1, "the experts do not fit");
            check_spans(*first.w1, *w3, "the experts do not fit");
            check_spans(*first.w2, *w2, "the experts do not fit");
            check(w1->outputs == w2->inputs && w3->outputs == w2->inputs && w2->inputs == first.w2->inputs &&
                      w2->outputs == w1->inputs, "the experts do not fit");
        }
        check(n_chosen > 0 && n_chosen <= experts.size(), "as many experts must be there as are chosen");
        cierzo::mixture(at(x), n_rows, at(norm), eps, at(gate), experts, n_chosen, at(out));
    }, free_gil);
    m.def("sample", [](const std::vector<std::tuple<uintptr_t, uintptr_t, double, double, double, int64_t, double>>& rows,
                       size_t vocab) {
        std::vector<cierzo::Draw> draws;
        for (const auto& [scores, allowed, temperature, top_p, min_p, top_k, draw] : rows)
            draws.push_back({at(scores), at<const uint8_t>(allowed), temperature, top_p, min_p, top_k, draw, -1});
        cierzo::sample(draws.data(), draws.size(), vocab);
        std::vector<int64_t> tokens;
        for (const cierzo::Draw& d : draws) tokens.push_back(d.token);
        return tokens;
    }, free_gil);
    m.def("unpack", [](const Matrix& w, uintptr_t rows, size_t n, uintptr_t out) {
        cierzo::unpack(w, at<const int64_t>(rows), n, at(out));
    }, free_gil);
}
