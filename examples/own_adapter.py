"""An adapter of one's own, for a pipeline that secondlook does not know: Stable Diffusion 1 and 2, in one short file.

`secondlook draw "a red cat" --model FOLDER_OR_ID --adapter examples.own_adapter:StableDiffusion --out runs/sd`
"""

from torch import Tensor

from secondlook.adapters.base import Adapter, Encoded


class StableDiffusion(Adapter):
    family = "sd"
    pipelines = ("StableDiffusionPipeline",)
    needs = ("text_encoder", "tokenizer")  # parts without which the pipeline cannot draw
    core = "unet"  # the network's name in the pipeline

    def multiple(self) -> int:
        """Each level of the U-Net halves the latents' sides."""
        return self.factor * 2 ** (len(self.module.config.block_out_channels) - 1)

    def texts(self, prompt: str | None) -> dict[str, Tensor]:
        """One row; None asks for the unconditional or negative one."""
        embeds, null = self.pipe.encode_prompt(
            prompt or "", self.device, 1, prompt is None, negative_prompt=self.options.negative
        )
        return {"embeds": null if prompt is None else embeds}

    def ask(self, x: Tensor, level: Tensor, cond: Encoded) -> Tensor:
        """The network's own output; base.py knows from the scheduler what it means."""
        return self.module(x, level, encoder_hidden_states=cond["embeds"].to(x.dtype), return_dict=False)[0]

    def limits(self) -> dict[str, int]:
        return {"tokenizer": self.pipe.tokenizer.model_max_length}
