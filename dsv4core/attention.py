"""The attention of one DeepSeek-V4 layer: a template method over a backend's ops, with two holes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from dsv4core.cache import LayerCache, PagedCache, cache_specs
from dsv4core.cache.header import model_of
from dsv4core.compressor import Compressor
from dsv4core.config import AttentionConfig
from dsv4core.errors import OpArgumentError, WeightsError
from dsv4core.indexer import WORKSPACE_BYTES, Indexer
from dsv4core.numerics import tables
from dsv4core.parallel import TensorParallel
from dsv4core.plan import BatchPlan, Limits, prefill_workspace_rows
from dsv4core.runtime import autocasts
from dsv4core.weights import AttentionWeights

if TYPE_CHECKING:
    from dsv4core.backend import Backend

FIRST_TABLE_ROWS = 65536  # 16 MiB; a longer request makes the table grow


class DeepseekV4Attention(ABC):
    """Project, norm and rotate, write the pages, select, attend, project back.

    Call it with hidden [T, hidden], a `PagedCache` and the step's `BatchPlan`; rows follow the order of the
    mapping given to `cache.plan`. A backend overrides ops, or the steps of `forward` here, never `forward`
    itself. `Backend.attention` sets `parallel` on a rank that has only some of the heads. Inference only.
    """

    parallel: TensorParallel | None = None
    passed_over: ClassVar[frozenset[str]] = frozenset({"attend", "decode", "turn", "output"})
    """Steps whose place `attend_turned` takes."""

    def __init_subclass__(cls, **words: Any) -> None:
        """A class that replaces one of those steps and not `attend_turned` gets its steps called."""
        super().__init_subclass__(**words)
        if "attend_turned" not in vars(cls) and not cls.passed_over.isdisjoint(vars(cls)):
            cls.attend_turned = DeepseekV4Attention.attend_turned

    def __init__(
        self, config: AttentionConfig, layer: int, weights: AttentionWeights, backend: Backend
    ) -> None:
        self.config = config
        self.layer = config.layer(layer)
        self.name = f"attention of layer {layer}"  # a compiled layer cannot put it together
        self.ops = backend.ops
        self.workspace = backend.workspace
        self.dtype = torch.float32 if config.activation == "f32" else torch.bfloat16
        weights.validate(config, layer)
        places = sorted({str(value.device) for value in weights.flat().values()})
        self.device = weights.attn_sink.device
        if len(places) > 1 or self.device.type != backend.device_type:
            raise WeightsError(
                f"the weights of layer {layer} lie on {', '.join(places)}, backend {backend.name!r} computes"
                f" on one device of type {backend.device_type}: type weights.to({backend.device_type!r})"
            )
        w = weights.prepared(self.dtype)
        self.heads = config.num_attention_heads
        linears, fp8 = backend.linears, config.activation_quant is not None
        linears = linears.widening(self.dtype) if config.weight_storage == "widened" else linears
        self.w_qkv = linears.joined(w.wq_a, w.wkv, x=self.dtype, quantise=fp8)
        self.wq_b = linears.linear(w.wq_b, self.dtype, quantise=fp8)
        self.q_norm, self.kv_norm = w.q_norm, w.kv_norm
        turned = self.dtype if config.output_quant is None else torch.float8_e4m3fn
        self.wo_a = linears.linear(w.wo_a, turned, out=self.dtype, groups=config.o_groups)
        self.wo_b = linears.linear(w.wo_b, self.dtype, quantise=fp8)
        padding = (0, self.padded_heads - self.heads)
        self.attn_sink = torch.nn.functional.pad(w.attn_sink, padding, value=-torch.inf)
        self.group = f"c{self.layer.ratio}" if self.layer.ratio else None
        self.compressor: Compressor | None = None
        if w.compressor is not None and self.group is not None:
            self.compressor = Compressor.build(
                w.compressor, linears, self.dtype, ratio=self.layer.ratio, head_dim=config.head_dim,
                group=self.group, layout=config.main_layout, rotate="none", eps=config.rms_norm_eps,
            )  # fmt: skip
        self.indexer: Indexer | None = None
        if w.indexer is not None:
            self.indexer = Indexer.build(w.indexer, config, self.layer.ratio, linears, self.dtype)
        self._table = self._cos_sin(FIRST_TABLE_ROWS)
        self._model = model_of(config)
        self._layouts = {spec.group: spec.layout for spec in cache_specs(config, layer)}

    @cached_property
    def padded_heads(self) -> int:
        """Heads that the attention kernels see; a backend with fixed head counts returns more."""
        return self.heads

    def __call__(self, hidden: Tensor, cache: PagedCache, plan: BatchPlan) -> Tensor:
        """Attend, under `torch.autocast` as without. Shapes: hidden bf16 [T, hidden] -> bf16 [T, hidden]."""
        if not autocasts(self.device.type):
            return self.forward(hidden, cache, plan)
        with torch.autocast(self.device.type, enabled=False):
            return self.forward(hidden, cache, plan)

    def forward(self, hidden: Tensor, cache: PagedCache, plan: BatchPlan) -> Tensor:
        """The whole step of this layer; final. Shapes: hidden bf16 [T, hidden] -> bf16 [T, hidden]."""
        self._check_kinds(hidden, cache, plan)
        pages = cache.layer(self.layer.index)
        self._check(hidden, pages, plan)
        if not torch.compiler.is_compiling():
            cache.check_plan(plan)
        x = hidden if plan.permutation is None else hidden[plan.permutation]
        cos_sin = self.rope(plan)
        q, selected = self.prepare(x, pages, plan, cos_sin)
        turned = self.attend_turned(q, selected, pages, plan, cos_sin)
        if turned is None:
            out = self.attend(q, selected, pages, plan)
            del q, selected  # as large as the output: what follows takes their place
            y = self.output(out[:, : self.heads], plan, cos_sin)
        else:
            y = self.project(*turned)
        return y if plan.inverse is None else y[plan.inverse]

    def prepare(
        self, x: Tensor, pages: LayerCache, plan: BatchPlan, cos_sin: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Queries and the indexer's list; every cache is written. A backend may fork streams here.

        Shapes: -> [T, padded_heads, 512], i32 [T, index_topk] or None.
        """
        qr, kv = self.latents(x)
        q = self.queries(qr, kv, pages, plan, cos_sin)
        return q, self.compress(x, qr, pages, plan, cos_sin)

    def latents(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Query latent and key row, normalised. Shapes: -> [T, q_lora], [T, 512]."""
        c = self.config
        latent, kv = self.w_qkv(x).split_with_sizes((c.q_lora_rank, c.head_dim), dim=1)
        return self.ops.fused_q_kv_rmsnorm(latent, kv, self.q_norm, self.kv_norm, eps=c.rms_norm_eps)

    def queries(self, qr: Tensor, kv: Tensor, pages: LayerCache, plan: BatchPlan, cos_sin: Tensor) -> Tensor:
        """Rotated queries; the window rows are written. Shapes: -> [T, padded_heads, 512]."""
        c = self.config
        q = self.wq_b(qr).view(-1, self.heads, c.head_dim)
        return self.ops.fused_qnorm_rope_kv_insert(
            q, kv, plan.positions, cos_sin, pages.swa, plan.slots["swa"], rows=plan.rows["swa"],
            layout=c.main_layout, eps=c.rms_norm_eps, padded_heads=self.padded_heads,
        )  # fmt: skip

    def compress(
        self, x: Tensor, qr: Tensor, pages: LayerCache, plan: BatchPlan, cos_sin: Tensor
    ) -> Tensor | None:
        """Write the compressed caches; the indexer's list if there is one.

        Shapes: -> i32 [T, index_topk] or None.
        """
        selected = self.select(x, qr, pages, plan, cos_sin)
        self.close_windows(x, pages, plan, cos_sin)
        return selected

    def select(
        self, x: Tensor, qr: Tensor, pages: LayerCache, plan: BatchPlan, cos_sin: Tensor
    ) -> Tensor | None:
        """Half of `compress`: write index keys, choose. Shapes: -> i32 [T, index_topk] or None."""
        if self.indexer is None:
            return None
        assert pages.indexer is not None and pages.indexer_state is not None
        return self.indexer(self.ops, x, qr, pages.indexer_state, pages.indexer, plan, cos_sin)

    def close_windows(self, x: Tensor, pages: LayerCache, plan: BatchPlan, cos_sin: Tensor) -> None:
        """The other half: write the states of every token and the entries that are complete."""
        if self.compressor is not None:
            assert pages.compressed is not None and pages.state is not None
            self.compressor(self.ops, x, pages.state, pages.compressed, plan, cos_sin)

    def attend(self, q: Tensor, selected: Tensor | None, pages: LayerCache, plan: BatchPlan) -> Tensor:
        """All rows of a step; padding behind prefill rows is zero. Shapes: -> [T, padded_heads, 512]."""
        out = torch.empty_like(q)
        if plan.num_decode_tokens:
            self.decode(q, selected, pages, plan, out)
        if plan.num_prefill_tokens:
            self.prefill(q, selected, pages, plan, out)
            out[plan.num_decode_tokens + plan.num_prefill_tokens :] = 0
        return out

    @abstractmethod
    def decode(
        self, q: Tensor, selected: Tensor | None, pages: LayerCache, plan: BatchPlan, out: Tensor
    ) -> None:
        """Attend for the rows 0:num_decode_tokens of q and write those rows of `out`.

        Shapes: q, out [T, padded_heads, 512]; selected i32 [T, index_topk], the entries of a ratio-4 layer,
        or None.
        """

    @abstractmethod
    def prefill(
        self, q: Tensor, selected: Tensor | None, pages: LayerCache, plan: BatchPlan, out: Tensor
    ) -> None:
        """Attend for the num_prefill_tokens rows behind the decode rows and write those rows of `out`."""

    def attend_turned(
        self, q: Tensor, selected: Tensor | None, pages: LayerCache, plan: BatchPlan, cos_sin: Tensor
    ) -> tuple[Tensor, Tensor | None] | None:
        """`attend` and `turn` in one, for a backend that has them so; None: this step takes the two.

        Shapes: q [T, padded_heads, 512] -> what `turn` returns.
        """
        return None

    def output(self, o: Tensor, plan: BatchPlan, cos_sin: Tensor) -> Tensor:
        """Turn back and project. Shapes: o [T, H, 512] -> [T, hidden]."""
        return self.project(*self.turn(o, plan, cos_sin))

    def turn(self, o: Tensor, plan: BatchPlan, cos_sin: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rotate back, and quantise where the config says so.

        Shapes: o [T, H, 512] -> the same and None, or e4m3 [T, G, H*512/G] and its scales.
        """
        groups, quant = self.config.o_groups, self.config.output_quant
        if quant is None:
            return self.ops.inverse_rope(o, plan.positions, cos_sin), None
        return self.ops.fused_inv_rope_fp8_quant(
            o, plan.positions, cos_sin, groups=groups, scale_format=quant
        )

    def project(self, turned: Tensor, scales: Tensor | None) -> Tensor:
        """Both output projections, and the sum over ranks. Shapes: what `turn` returns -> [T, hidden]."""
        y = self.wo_b(self.wo_a(turned, scales).flatten(1))
        return y if self.parallel is None else self.parallel.add(y)

    def rope(self, plan: BatchPlan) -> Tensor:
        """The layer's one table, long enough for the plan. Shapes: -> f32 [P, 64]."""
        if plan.max_position >= self._table.shape[0]:
            self._table = self._cos_sin(1 << plan.max_position.bit_length())
        return self._table

    def workspace_bytes(self, limits: Limits) -> int:
        """Upper bound of the scratch that a step within `limits` takes: gathered keys and index scores.

        Activations, which grow with the tokens of the step alone, come on top.
        """
        rows = prefill_workspace_rows(self.config, self.layer.ratio, limits)
        gathered = rows * self.config.head_dim * self.dtype.itemsize
        return gathered + (WORKSPACE_BYTES if self.indexer is not None else 0)

    def profile(self, limits: Limits) -> None:
        """Reserve what steps within `limits` need (gather workspace, RoPE rows); touches no cache."""
        rows = prefill_workspace_rows(self.config, self.layer.ratio, limits)
        self.workspace.reserve(rows * self.config.head_dim * self.dtype.itemsize, self.device)
        if limits.max_seq_len > self._table.shape[0]:
            self._table = self._cos_sin(limits.max_seq_len)

    def _cos_sin(self, rows: int) -> Tensor:
        return tables.cos_sin(self.layer.theta, self.layer.yarn, rows, self.device)

    def _check_kinds(self, hidden: object, cache: object, plan: object) -> None:
        for argument, kind, given in (
            ("hidden", Tensor, hidden),
            ("cache", PagedCache, cache),
            ("plan", BatchPlan, plan),
        ):
            if not isinstance(given, kind):
                expected = f"a {kind.__name__}: the call is layer(hidden, cache, plan)"
                raise OpArgumentError(self.name, argument, expected, f"a {type(given).__name__}")

    def _check(self, hidden: Tensor, pages: LayerCache, plan: BatchPlan) -> None:
        name, want = self.name, (plan.num_tokens, self.config.hidden_size)
        if tuple(hidden.shape) != want or hidden.dtype != self.dtype or hidden.device != self.device:
            raise OpArgumentError(
                name, "hidden", f"{self.dtype} {list(want)} on {self.device}",
                f"{hidden.dtype} {list(hidden.shape)} on {hidden.device}",
            )  # fmt: skip
        for group, layout in self._layouts.items():
            spec, rows = pages.specs.get(group), plan.rows.get(group)
            if spec is None or spec.layout != layout:
                expected = f"pages of {layout} in group {group!r}: allocate it with the config of this layer"
                raise OpArgumentError(name, "cache", expected, spec.layout if spec else "no such pages")
            if rows != spec.rows:
                expected = f"for pages of {spec.rows} rows in group {group!r}: take it from this cache"
                got = f"one for {rows} rows" if rows else f"one without tables of {group!r}"
                raise OpArgumentError(name, "plan", expected, got)
        self._check_model(pages, plan)

    def _check_model(self, pages: LayerCache, plan: BatchPlan) -> None:
        """Rows of another window, norm or rotation have the same layout: only the numbers tell them apart."""
        if pages.model != self._model:
            other = [key for key, value in self._model.items() if pages.model[key] != value]
            expected, got = (
                f"one for {', '.join(f'{key} {model[key]}' for key in other)}"
                for model in (self._model, pages.model)
            )
            raise OpArgumentError(
                self.name, "cache", f"{expected}: allocate it with the config of this layer", got
            )
        window = plan.swa_slots.shape[1]
        if window != self.config.sliding_window:
            expected = f"for a window of {self.config.sliding_window} tokens: take it from this cache"
            raise OpArgumentError(self.name, "plan", expected, f"one for {window}")
