"""What it takes to quantize a U-Net of Stable Diffusion's size."""
