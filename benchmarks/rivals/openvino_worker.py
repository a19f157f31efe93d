"""OpenVINO GenAI, which reads GGUF files itself. See worker.py. A setting is a dict of the CPU plugin's properties."""

import platform
from importlib.metadata import version

import numpy as np
import openvino
import openvino_genai
from worker import Job, run


class OpenVino:
    loads = True
    absent_bytes = 0

    def __init__(self, job: Job) -> None:
        try:
            tokenizer = openvino_genai.Tokenizer(job.model)
        except IndexError:  # it reads byte-pair vocabularies only; all that is measured works on ids
            tokenizer = openvino_genai.Tokenizer(job.small_model)
        properties = {"INFERENCE_NUM_THREADS": job.threads, **job.setting}
        self._pipeline = openvino_genai.LLMPipeline(job.model, tokenizer, "CPU", properties)
        self.versions = {
            "openvino-genai": openvino_genai.get_version(),
            "openvino": openvino.get_version(),
            "python": platform.python_version(),
            "numpy": version("numpy"),
        }
        core = openvino.Core()
        self.flags = {"capabilities": core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"), "threads": job.threads}

    def generate(self, prompts: list[list[int]], steps: int) -> tuple[float, float]:
        ids = np.array(prompts, np.int64)
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = steps + 1, True, False
        metrics = self._pipeline.generate(inputs, config).perf_metrics  # in milliseconds
        times = metrics.raw_metrics.m_new_token_times  # one a step
        if len(times) != steps + 1:
            raise RuntimeError(f"{len(times)} steps instead of {steps + 1}")
        return metrics.get_ttft().mean / 1e3, (times[-1] - times[0]) / 1e3


if __name__ == "__main__":
    run(OpenVino)
