"""Autoencoders, GANs and diffusion, as Keras's guides and examples have them."""

import keras
import tensorflow as tf
from keras import layers, ops

from .program import POLICIES, Trial, normal, program, uniform

RANDOM = "noise is drawn in the compute dtype"


def dense(size, *units, last=None):
    return keras.Sequential(
        [
            keras.Input((size,)),
            *[layers.Dense(n, layers.LeakyReLU()) for n in units[:-1]],
            layers.Dense(units[-1], activation=last),
        ]
    )


class Sampling(layers.Layer):
    """Draws from a Gaussian, in the dtype of its inputs."""

    def __init__(self):
        super().__init__()
        self.seed = keras.random.SeedGenerator(7)

    def call(self, inputs):
        mean, log_variance = inputs
        noise = keras.random.normal(ops.shape(mean), dtype=mean.dtype, seed=self.seed)
        return mean + ops.exp(0.5 * log_variance) * noise


@program(noise=RANDOM)
def vae():
    """keras.io's variational autoencoder: sub-models, no ``call``."""

    class Vae(keras.Model):
        def __init__(self):
            super().__init__()
            inputs = keras.Input((8,))
            h = layers.Dense(6, "relu")(inputs)
            mean, log_variance = layers.Dense(2)(h), layers.Dense(2)(h)
            z = Sampling()([mean, log_variance])
            self.encoder = keras.Model(inputs, [mean, log_variance, z])
            self.decoder = dense(2, 6, 8, last="sigmoid")
            self.tracker = keras.metrics.Mean(name="loss")

        @property
        def metrics(self):
            return [self.tracker]

        def train_step(self, data):
            with tf.GradientTape() as tape:
                mean, log_variance, z = self.encoder(data)
                y = self.decoder(z)
                error = ops.mean(keras.losses.binary_crossentropy(data, y))
                error = ops.cast(error, "float32")
                kl = -0.5 * (
                    1 + log_variance - ops.square(mean) - ops.exp(log_variance)
                )
                loss = error + 0.1 * ops.cast(ops.mean(ops.sum(kl, axis=1)), "float32")
                scaled = self.optimizer.scale_loss(loss)
            gradients = tape.gradient(scaled, self.trainable_weights)
            self.optimizer.apply(gradients, self.trainable_weights)
            self.tracker.update_state(loss)
            return {"loss": self.tracker.result()}

    return Trial(Vae(), uniform(8), loss=None, calls=False)


@program(fails=POLICIES, noise=RANDOM)
def vae_with_add_loss():
    """The KL divergence by ``add_loss``, the rest by ``compile``."""

    class Vae(keras.Model):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = dense(8, 6, 4), dense(2, 6, 8, last="sigmoid")
            self.sampling = Sampling()

        def call(self, x):
            mean, log_variance = tf.split(self.encoder(x), 2, axis=-1)
            kl = -0.5 * (1 + log_variance - mean**2 - tf.exp(log_variance))
            self.add_loss(0.1 * tf.reduce_mean(tf.reduce_sum(kl, axis=1)))
            return self.decoder(self.sampling([mean, log_variance]))

    x = uniform(8)
    return Trial(Vae(), x, x, loss="binary_crossentropy")


def adversaries(model, wrap):
    model.compile(
        wrap(keras.optimizers.SGD(0.01, momentum=0.9)),
        wrap(keras.optimizers.SGD(0.01, momentum=0.9)),
        keras.losses.BinaryCrossentropy(from_logits=True),
    )


class Gan(keras.Model):
    """keras.io's GAN: two optimizers, a ``compile`` of its own."""

    def __init__(self, discriminator, generator):
        super().__init__()
        self.discriminator, self.generator = discriminator, generator
        self.seed = keras.random.SeedGenerator(7)

    def compile(self, d_optimizer, g_optimizer, loss_fn):
        super().compile()
        self.d_optimizer, self.g_optimizer = d_optimizer, g_optimizer
        self.loss_fn = loss_fn

    def noise(self, rows):
        return keras.random.normal((rows, 3), seed=self.seed, dtype="float32")

    def apply(self, tape, optimizer, loss, network):
        gradients = tape.gradient(loss, network.trainable_weights)
        optimizer.apply(gradients, network.trainable_weights)

    def train_step(self, real):
        rows = tf.shape(real)[0]
        generated = self.generator(self.noise(rows))
        both = tf.concat([generated, tf.cast(real, generated.dtype)], axis=0)
        labels = tf.concat([tf.ones((rows, 1)), tf.zeros((rows, 1))], axis=0)
        with tf.GradientTape() as tape:
            d_loss = self.loss_fn(labels, self.discriminator(both))
            scaled = self.d_optimizer.scale_loss(d_loss)
        self.apply(tape, self.d_optimizer, scaled, self.discriminator)
        with tf.GradientTape() as tape:
            judged = self.discriminator(self.generator(self.noise(rows)))
            g_loss = self.loss_fn(tf.zeros((rows, 1)), judged)
            scaled = self.g_optimizer.scale_loss(g_loss)
        self.apply(tape, self.g_optimizer, scaled, self.generator)
        return {"loss": d_loss, "g_loss": g_loss}


@program()
def gan():
    model = Gan(dense(4, 8, 1), dense(3, 8, 4))
    return Trial(model, normal(4), compile=adversaries, calls=False)


@program()
def gradient_penalty():
    """WGAN-GP: the norm of the critic's gradient is part of its loss."""

    class Wasserstein(Gan):
        def penalty(self, real, fake):
            mixed = 0.3 * real + 0.7 * fake
            with tf.GradientTape() as tape:
                tape.watch(mixed)
                judged = self.discriminator(mixed, training=True)
            slope = tape.gradient(judged, mixed)
            norm = tf.sqrt(tf.reduce_sum(tf.square(slope), axis=1) + 1e-6)
            return tf.reduce_mean(tf.square(norm - 1.0))

        def train_step(self, real):
            fake = self.generator(self.noise(tf.shape(real)[0]), training=True)
            with tf.GradientTape() as tape:
                real = tf.cast(real, fake.dtype)
                judged = [self.discriminator(each) for each in (fake, real)]
                loss = tf.reduce_mean(judged[0]) - tf.reduce_mean(judged[1])
                loss += tf.cast(self.penalty(real, fake), loss.dtype)
                scaled = self.d_optimizer.scale_loss(loss)
            self.apply(tape, self.d_optimizer, scaled, self.discriminator)
            with tf.GradientTape() as tape:
                judged = self.discriminator(self.generator(self.noise(4)))
                g_loss = -tf.reduce_mean(judged)
                scaled = self.g_optimizer.scale_loss(g_loss)
            self.apply(tape, self.g_optimizer, scaled, self.generator)
            return {"loss": loss, "g_loss": g_loss}

    model = Wasserstein(dense(4, 8, 1), dense(3, 8, 4))
    return Trial(model, normal(4), compile=adversaries, calls=False)


@program()
def conditional_gan():
    """Labels as one-hot numbers beside the noise, and as planes beside the data."""

    class Conditional(Gan):
        def train_step(self, data):
            real, labels = data
            noise = tf.concat([self.noise(tf.shape(real)[0]), labels], axis=-1)
            with tf.GradientTape(persistent=True) as tape:
                fake = self.generator(noise)
                joined = tf.concat([fake, tf.cast(labels, fake.dtype)], axis=-1)
                judged_fake = self.discriminator(joined)
                judged = self.discriminator(tf.concat([real, labels], axis=-1))
                loss = self.loss_fn(tf.ones_like(judged), judged)
                loss += self.loss_fn(tf.zeros_like(judged_fake), judged_fake)
                g_loss = self.loss_fn(tf.ones_like(judged_fake), judged_fake)
                scaled = self.d_optimizer.scale_loss(loss)
                g_scaled = self.g_optimizer.scale_loss(g_loss)
            self.apply(tape, self.d_optimizer, scaled, self.discriminator)
            self.apply(tape, self.g_optimizer, g_scaled, self.generator)
            return {"loss": loss, "g_loss": g_loss}

    model = Conditional(dense(6, 8, 1), dense(5, 8, 4))
    labels = keras.utils.to_categorical([0, 1] * 6, 2).astype("float32")
    return Trial(model, normal(4), labels, compile=adversaries, calls=False)


@program()
def diffusion():
    """A step of denoising: schedules from float32 tables, an embedding of the time."""

    class Diffusion(keras.Model):
        def __init__(self):
            super().__init__()
            self.time, self.body = layers.Embedding(10, 4), dense(8, 8, 4)

        def call(self, inputs):
            noisy, step = inputs
            return self.body(tf.concat([noisy, self.time(step)], axis=-1))

        def train_step(self, data):
            rows = tf.shape(data)[0]
            step = tf.range(rows) * 2
            kept = tf.gather(tf.linspace(0.9, 0.1, 10), step)[:, None]
            noise = tf.sin(7.0 * data)
            noisy = tf.sqrt(kept) * data + tf.sqrt(1 - kept) * noise
            with tf.GradientTape() as tape:
                found = self([noisy, step], training=True)
                loss = tf.reduce_mean(keras.losses.mean_absolute_error(noise, found))
                scaled = self.optimizer.scale_loss(loss)
            gradients = tape.gradient(scaled, self.trainable_weights)
            self.optimizer.apply(gradients, self.trainable_weights)
            return {"loss": loss}

    return Trial(Diffusion(), normal(4), loss=None, calls=False)


@program(fails=POLICIES)
def coupling_flow():
    """RealNVP: masks times x, exponentials of scales, a log-determinant as a loss."""

    class Coupling(layers.Layer):
        def __init__(self, parity):
            super().__init__()
            self.parity = parity
            self.scale, self.shift = (
                dense(4, 6, 4, last="tanh"),
                dense(4, 6, 4),
            )

        def call(self, x):
            mask = tf.cast(tf.range(4) % 2 == self.parity, x.dtype)
            kept = x * mask
            scale = self.scale(kept) * (1 - mask)
            shift = self.shift(kept) * (1 - mask)
            self.add_loss(-tf.reduce_mean(tf.reduce_sum(scale, axis=-1)))
            return kept + (1 - mask) * (x * tf.exp(scale) + shift)

    def loss(_, z):
        return 0.5 * tf.reduce_sum(tf.square(z), axis=-1)

    x = normal(4)
    return Trial(keras.Sequential([Coupling(0), Coupling(1)]), x, x, loss)


@program(noise=RANDOM)
def gumbel_softmax():
    """Samples of categories by ``tf.random.uniform`` in the dtype of the logits."""

    class Gumbel(layers.Layer):
        def call(self, logits):
            u = tf.random.uniform(tf.shape(logits), 0.01, 0.99, dtype=logits.dtype)
            return tf.nn.softmax((logits - tf.math.log(-tf.math.log(u))) / 0.5)

    model = keras.Sequential([layers.Dense(4), Gumbel(), layers.Dense(1)])
    return Trial(model, normal(4), normal(1))


@program()
def language_model():
    """A decoder that predicts the next token, with the loss masked by hand."""

    class Decoder(keras.Model):
        def __init__(self):
            super().__init__()
            self.table, self.norm = layers.Embedding(12, 8), layers.LayerNormalization()
            self.attention, self.out = layers.MultiHeadAttention(2, 4), layers.Dense(12)

        def call(self, tokens):
            x = self.table(tokens)
            x = self.norm(x + self.attention(x, x, use_causal_mask=True))
            return self.out(x)

    def loss(y, logits):
        errors = tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels=tf.cast(y, "int32"), logits=logits
        )
        mask = tf.cast(y > 0, errors.dtype)
        return tf.reduce_sum(errors * mask) / tf.reduce_sum(mask)

    tokens = (uniform(6) * 12).astype("int32")
    return Trial(Decoder(), tokens[:, :-1], tokens[:, 1:], loss)
