"""The networks: a U-Net with image-set attention, the encoder of preceding pictures, the reader of world pictures."""
