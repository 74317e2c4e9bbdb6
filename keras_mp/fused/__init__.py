"""Updates that walk through memory once, of SGD, Adam and others.

Keras writes an update as a row of operations. Outside XLA each of them reads and writes
as much memory as the variable holds, and a model of many small variables spends its
time starting them. Here, by the same formulas, so that results differ by rounding only:

- TensorFlow's training kernels do a whole update in place, one operation a variable.
- Small variables of one shape are stacked where starting such a kernel would take
  longer than its work. What is to be added to them is compiled with XLA for Adam; for
  plain SGD it is a product with the stacks that were judged.
- Large gradients in 16 bits are cast by XLA where plain SGD reads them.
- Other optimizers that look at one number at a time keep Keras's operations: XLA
  compiles those of each large variable into one pass.
- Sparse gradients have Keras's own update, compiled with XLA by itself. TensorFlow's
  scatter kernels put a variable into a mode in which every later read copies all of it,
  which is most of a step with a large embedding; XLA writes rows in place.

Inside XLA nothing is replaced: it makes one pass of Keras's operations by itself.

A kernel of another optimizer is a class like those of `sgd` and `adam`, and an entry of
``plan.KERNELS``.
"""

from keras_mp.fused.plan import Plan

__all__ = ["Plan"]
