"""K3IM: transformers and mixers for images, sequences and videos."""

import k3im.cct
import k3im.convmixer
import k3im.fnet
import k3im.gmlp
import k3im.mlp_mixer
import k3im.vit
import k3im.vit_3d
