"""Patches of 1 x 250 timesteps: their projection's weights, and the way back to a signal."""

# B records, N patches, P padded patch length (256), C leads, T timesteps, D width

from torch import Tensor, nn

PADDED = 256  # a row of 250 half floats defeats 16-byte copies; the last 6 columns are zero


class PatchEmbed(nn.Module):
    """Weights of the patch projection under the reference's names, as a (D, 1, 1, P) convolution.

    The projection runs in `ecgfast_kernels.ops.patch_embed`, which never touches removed patches.
    """

    def __init__(self, patch_timesteps: int, width: int) -> None:
        super().__init__()
        kernel = (1, patch_timesteps)
        self.proj = nn.Conv2d(1, width, kernel_size=kernel, stride=kernel)

    def weight(self) -> Tensor:
        """The projection as a (D, 250) matrix; shares memory with the parameter."""
        return self.proj.weight.flatten(1)

    def bias(self) -> Tensor:
        """The projection's bias, (D,)."""
        assert self.proj.bias is not None
        return self.proj.bias


def unpatchify(patches_BNP: Tensor, *, num_leads: int, patch_timesteps: int = 250) -> Tensor:
    """Put patches back together as a signal.

    Args:
        patches_BNP: (B, N, >= patch_timesteps); further columns are padding and left out.
        num_leads: C; patch n is column n % (N / C) of lead n // (N / C).
        patch_timesteps: length of a patch without padding.
    Returns:
        (B, C, T), same dtype.
    """
    num_records, num_patches, _ = patches_BNP.shape
    num_timesteps = num_patches // num_leads * patch_timesteps
    signal = patches_BNP[..., :patch_timesteps]
    return signal.reshape(num_records, num_leads, num_timesteps)
