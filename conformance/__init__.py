"""Every layer, activation, loss and metric of Keras, in 16 bits beside float32.

`discover` lists what Keras has, `cases` says how to call each, `measure` runs a case in
both precisions, `bounds` says how far they may lie apart, and `table` writes it down.
"""
