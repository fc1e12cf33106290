"""Independent float64 numpy reference of the PO-MPC family's mathematics.

The oracle of test_golden.py; written from the equations, not from the JAX code.

Shapes: T time, B batch, A action size, N planner samples, P planner proposals,
E elites, H planning horizon, J planner iterations, K bins, L latent size.
"""

import numpy as np

LOG_2PI = float(np.log(2.0 * np.pi))


def f64(x):
    return np.asarray(x, dtype=np.float64)


# --------------------------------------------------------------- symlog, bins


def symlog(x):
    """sign(x) log(1 + |x|), elementwise."""
    x = f64(x)
    return np.sign(x) * np.log1p(np.abs(x))


def symexp(x):
    """sign(x) (exp|x| - 1), the inverse of symlog."""
    x = f64(x)
    return np.sign(x) * np.expm1(np.abs(x))


def two_hot(x, num_bins=101, low=-10.0, high=10.0):
    """x [...] in raw units -> [..., K]: mass on the two bins around symlog(x)."""
    x = f64(x)
    position = (np.clip(symlog(x), low, high) - low) / (high - low) * (num_bins - 1)
    target = np.zeros(x.shape + (num_bins,))
    for index in np.ndindex(x.shape):
        lower = int(np.floor(position[index]))
        upper_mass = position[index] - lower
        target[index + (lower,)] += 1.0 - upper_mass
        if lower + 1 < num_bins:  # nothing lies beyond the last bin
            target[index + (lower + 1,)] += upper_mass
    return target


def log_softmax(logits):
    """Over the last axis."""
    shifted = f64(logits) - np.max(logits, axis=-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))


def two_hot_decode(logits, low=-10.0, high=10.0):
    """logits [..., K] -> [...]: symexp of the expected bin, expectation first."""
    bins = np.linspace(low, high, np.shape(logits)[-1])
    return symexp(np.sum(np.exp(log_softmax(logits)) * bins, axis=-1))


def two_hot_cross_entropy(logits, x, low=-10.0, high=10.0):
    """logits [..., K], x [...] -> [...]: -sum two_hot(x) log softmax(logits)."""
    target = two_hot(x, np.shape(logits)[-1], low, high)
    return -np.sum(target * log_softmax(logits), axis=-1)


# -------------------------------------------------------------------- layers


def simnorm(x, group=8):
    """x [..., L]: softmax in groups of `group` entries g, g + L/group, ..."""
    x = f64(x)
    stride = x.shape[-1] // group
    out = np.empty_like(x)
    for g in range(stride):
        entries = g + stride * np.arange(group)
        out[..., entries] = np.exp(log_softmax(x[..., entries]))
    return out


def layer_norm(x, scale, offset, eps=1e-5):
    """x [..., D], scale [D], offset [D]; biased variance over the last axis."""
    x = f64(x)
    centred = x - np.mean(x, axis=-1, keepdims=True)
    variance = np.mean(centred**2, axis=-1, keepdims=True)
    return centred / np.sqrt(variance + eps) * f64(scale) + f64(offset)


def mish(x):
    """x tanh(softplus(x))."""
    x = f64(x)
    return x * np.tanh(np.logaddexp(0.0, x))


def normed_linear(inputs, kernels, bias, scale, offset):
    """mish(LN(sum_i inputs[i] [..., D_i] @ kernels[i] [D_i, D] + bias [D]))."""
    pre = f64(bias)
    for x, kernel in zip(inputs, kernels, strict=True):
        pre = pre + f64(x) @ f64(kernel)
    return mish(layer_norm(pre, scale, offset))


# ----------------------------------------------------------------- Gaussians


def gaussian_log_prob(x, mean, std):
    """All [..., A] -> [...]: log density of a diagonal Gaussian."""
    z = (f64(x) - f64(mean)) / f64(std)
    return np.sum(-0.5 * z**2 - np.log(f64(std)) - 0.5 * LOG_2PI, axis=-1)


def gaussian_entropy(std):
    """std [..., A] -> [...]."""
    return np.sum(np.log(f64(std)) + 0.5 * (1.0 + LOG_2PI), axis=-1)


def gaussian_kl(mean1, std1, mean2, std2):
    """KL(N1 || N2) of every dimension, [..., A] -> [..., A]."""
    mean1, std1, mean2, std2 = f64(mean1), f64(std1), f64(mean2), f64(std2)
    return np.log(std2 / std1) + (std1**2 + (mean1 - mean2) ** 2) / (2 * std2**2) - 0.5


def bounded_log_std(raw, low, high):
    """low + (high - low) (1 + tanh(raw)) / 2."""
    return low + 0.5 * (high - low) * (1.0 + np.tanh(f64(raw)))


# ------------------------------------------------- scales, averages, targets


def percentile_spread(x):
    """P95 - P5 of all entries, linearly interpolated."""
    ordered = np.sort(f64(x).ravel())

    def percentile(p):
        position = p / 100.0 * (len(ordered) - 1)
        lower = int(np.floor(position))
        upper = min(lower + 1, len(ordered) - 1)
        return ordered[lower] + (position - lower) * (ordered[upper] - ordered[lower])

    return percentile(95.0) - percentile(5.0)


def running_scale_update(scale, spread, rate=0.01):
    """Moving average of the spread, the spread floored at one beforehand."""
    return scale + rate * (max(1.0, float(spread)) - scale)


def rho_mean(loss, mask, rho):
    """loss [T, B], mask [T, B] -> scalar.

    Masked mean with weights rho^t, times mean_t rho^t; with a full mask this is
    (1/T) sum_t rho^t mean_b loss. Zero where everything is masked.
    """
    loss, mask = f64(loss), f64(mask)
    powers = rho ** np.arange(loss.shape[0], dtype=np.float64)
    weight = powers[:, None] * mask
    if np.sum(weight) == 0.0:
        return 0.0
    return np.sum(weight * loss) / np.sum(weight) * np.mean(powers)


def q_target(reward, terminated, discount, next_q, reduce, penalty=0.0):
    """r + gamma (1 - d) (reduce_heads next_q - penalty); next_q [heads, ...].

    reduce is 'min' or 'mean'; penalty [...] is the soft target's
    lambda (S_Q/S_K) KL(pi || prior) at the next state.
    """
    value = {"min": np.min, "mean": np.mean}[reduce](f64(next_q), axis=0)
    return f64(reward) + discount * (1.0 - f64(terminated)) * (value - penalty)


def lambda_returns(reward, terminated, discount, next_value, transition, weight):
    """Sum over bootstrap places n of (1 - l) l^(n-1) G^(n), the last with what is left; [H]."""
    out = []
    for t in range(len(reward)):
        last = next(
            k for k in range(t, len(reward)) if k + 1 == len(reward) or not transition[k + 1]
        )
        total, left = 0.0, 1.0
        for n in range(t, last + 1):
            value, factor = 0.0, 1.0
            for k in range(t, n + 1):
                value += factor * reward[k]
                factor *= discount * (1.0 - terminated[k])
            share = left if n == last else left * (1.0 - weight)
            total += share * (value + factor * next_value[n])
            left -= share
        out.append(total)
    return f64(out)


def v_target(reward_hat, terminated, discount, v_next):
    """One-step model target R(z,a) + gamma (1 - d) V(d(z,a)), all [...]."""
    return f64(reward_hat) + discount * (1.0 - f64(terminated)) * f64(v_next)


# ------------------------------------------------------------------- planner


def rollout_return(step, value, root, actions, costs=None):
    """actions [H, A] -> scalar return of the model from latent `root`, to its end (discount 0).

    costs [H] are subtracted from the rewards.
    """
    latent, total, weight = root, 0.0, 1.0
    for t, action in enumerate(actions):
        latent, reward, discount = step(latent, action)
        total = total + weight * (reward if costs is None else reward - costs[t])
        weight = weight * discount
        if weight == 0.0:
            return total
    return total + weight * value(latent)


def knot_steps(horizon, knots):
    """Steps of `knots` evenly spread knots, halves rounded up; every step for 0 knots."""
    if knots == 0:
        return list(range(horizon))
    gap = (horizon - 1) / max(knots - 1, 1)
    return [int(np.floor(k * gap + 0.5)) for k in range(knots)]


def interpolate(knots, steps, horizon, kind):
    """knots [K, A] at `steps` -> [H, A]: straight lines, or cubic Hermite polynomials."""
    knots, out = f64(knots), []
    if len(steps) == 1:
        return np.tile(knots, (horizon, 1))
    secants = [(knots[k + 1] - knots[k]) / (steps[k + 1] - steps[k]) for k in range(len(steps) - 1)]
    slopes = [secants[0]]
    slopes += [(a + b) / 2 for a, b in zip(secants[:-1], secants[1:], strict=True)]
    slopes += [secants[-1]]
    for t in range(horizon):
        k = max(i for i in range(len(steps) - 1) if steps[i] <= t)
        gap = steps[k + 1] - steps[k]
        u = (t - steps[k]) / gap
        if kind == "linear":
            out.append((1 - u) * knots[k] + u * knots[k + 1])
            continue
        # The polynomial c0 + c1 u + c2 u^2 + c3 u^3 with these values and slopes at u = 0 and 1.
        rise, begin, end = knots[k + 1] - knots[k], gap * slopes[k], gap * slopes[k + 1]
        c2, c3 = 3 * rise - 2 * begin - end, begin + end - 2 * rise
        out.append(knots[k] + begin * u + c2 * u**2 + c3 * u**3)
    return np.stack(out)


def ornstein_uhlenbeck(noise, steps, rho):
    """noise [K, A] -> the stationary process of unit variance, correlation rho [A] per step."""
    out = [f64(noise[0])]
    for k in range(1, len(steps)):
        c = f64(rho) ** (steps[k] - steps[k - 1])
        out.append(c * out[-1] + np.sqrt(1 - c**2) * noise[k])
    return np.stack(out)


def mppi(
    step,
    value,
    init_mean,
    proposals,
    noise,
    gumbel,
    action_noise,
    root,
    *,
    num_elites,
    temperature,
    std_min,
    std_max,
    select="sample",
    explore=1.0,
    record="sampled_elite",
    low=-1.0,
    high=1.0,
    std_init=0.0,
    rho=0.0,
    knots=0,
    interpolation="linear",
    rate_cost=0.0,
    previous=None,
    scale="none",
):
    """Model-predictive path integral control, one state at a time.

    step(latent, action) -> (latent, reward, discount); value(latent) -> float.
    init_mean [H, A]: the warm start, already shifted. proposals [P, H, A].
    noise [J, N-P, H, A], gumbel [E], action_noise [A]: standard draws.
    low, high, std_*, rho, rate_cost: numbers or [A]; std and rate_cost in units of half the range.
    With knots, the search and its noise [J, N-P, K, A] are over the knots' actions.
    previous [A]: executed action before, or None.

    A sequence with a non-finite return ranks worst and has no weight; an iteration with
    only such sequences changes nothing.
    """
    horizon, size = np.shape(init_mean)
    low, high = np.broadcast_to(low, size), np.broadcast_to(high, size)
    half, steps = (high - low) / 2, knot_steps(horizon, knots)
    std_min, std_max = std_min * half, std_max * half
    mean = np.where(np.isfinite(init_mean), init_mean, (low + high) / 2)[steps]
    first_std = np.where(std_init > 0, std_init * half, std_max)
    std = np.tile(first_std, (len(steps), 1))
    elites = np.tile(np.clip(mean, low, high), (num_elites, 1, 1))
    elite_scores, weights = np.zeros(num_elites), np.full(num_elites, 1.0 / num_elites)
    found = False
    proposals = np.clip(f64(proposals), low, high)[:, steps]
    noise = np.stack(
        [[ornstein_uhlenbeck(x, steps, np.broadcast_to(rho, size)) for x in f64(n)] for n in noise]
    )

    def expand(sequence):
        return np.clip(interpolate(sequence, steps, horizon, interpolation), low, high)

    def score_one(sequence):
        actions = expand(sequence) if knots else sequence
        before = np.concatenate([[actions[0] if previous is None else previous], actions[:-1]])
        costs = np.sum(rate_cost * ((actions - before) / half) ** 2, axis=-1)
        return rollout_return(step, value, root, actions, costs)

    def score(sequences):
        scores = np.array([score_one(s) for s in sequences])
        return np.where(np.isfinite(scores), scores, -np.inf)

    proposal_scores = score(proposals)
    for iteration in range(noise.shape[0]):
        samples = np.clip(mean + std * noise[iteration], low, high)
        population = np.concatenate([proposals, samples])
        scores = np.concatenate([proposal_scores, score(samples)])
        if np.all(np.isinf(scores)):
            continue
        found = True
        order = np.argsort(-scores, kind="stable")[:num_elites]
        elites, elite_scores = population[order], scores[order]
        finite = np.isfinite(elite_scores)
        elite_scores = np.where(finite, elite_scores, np.min(elite_scores[finite]))
        unit = np.std(elite_scores[finite]) if scale == "std" else 1.0
        weights = finite * np.exp(temperature * (elite_scores - np.max(elite_scores)) / unit)
        weights = weights / np.sum(weights)
        w = weights[:, None, None]
        mean = np.sum(w * elites, axis=0)
        std = np.clip(np.sqrt(np.sum(w * (elites - mean) ** 2, axis=0)), std_min, std_max)

    mean = mean if found else elites[0]
    best = int(np.argmax(weights))
    if select == "sample":
        with np.errstate(divide="ignore"):
            chosen = int(np.argmax(np.log(weights) + f64(gumbel)))
    elif select == "argmax":
        chosen = best
    else:
        raise ValueError(select)
    first = elites[:, 0]  # [E, A]
    whole = expand(mean) if knots else mean
    if record == "sampled_elite":
        prior_mean, prior_std = first[chosen], std[0]
    elif record == "mean":
        prior_mean, prior_std = mean[0], std[0]
    elif record == "best_elite":
        prior_mean = first[best]
        spread = np.sum(weights[:, None] * (first - first[best]) ** 2, axis=0)
        prior_std = np.sqrt(spread + 1e-6)
    else:
        raise ValueError(record)
    return {
        "action": np.clip(first[chosen] + explore * std[0] * f64(action_noise), low, high),
        "actions": expand(elites[chosen]) if knots else elites[chosen],
        "mode": mean[0],
        "prior_mean": prior_mean,
        "prior_std": prior_std,
        "value": np.sum(weights * elite_scores),
        "next_mean": np.concatenate([whole[1:], whole[-1:] if knots else [(low + high) / 2]]),
    }


# --------------------------------------------------------------- policy head


def squash(kind, raw, log_std, eps, offset=None):
    """raw, log_std, eps [..., A] -> (action, Gaussian mean, Gaussian std).

    'tanh': the Gaussian lives before the tanh. 'clip' and
    'clip_straight_through': mean tanh(raw), the Gaussian is the unclipped one.
    The last two agree in value; the derivative of the second is that with the
    amount cut off, offset = clip(u) - u, held fixed.
    """
    raw, std, eps = f64(raw), np.exp(f64(log_std)), f64(eps)
    if kind == "tanh":
        return np.tanh(raw + std * eps), raw, std
    if kind in ("clip", "clip_straight_through"):
        mean = np.tanh(raw)
        unclipped = mean + std * eps
        action = np.clip(unclipped, -1.0, 1.0) if offset is None else unclipped + offset
        return action, mean, std
    raise ValueError(kind)


def entropy_bonus(kind, action, log_std, eps):
    """'gaussian': -A log N at the sample; 'squashed': + sum log(1 - a^2 + 1e-6).

    All [..., A] -> [...]; log N is the density of the unsquashed sample.
    """
    eps, log_std = f64(eps), f64(log_std)
    log_prob = np.sum(-0.5 * eps**2 - log_std - 0.5 * LOG_2PI, axis=-1)
    bonus = -eps.shape[-1] * log_prob
    if kind == "squashed":
        bonus = bonus + np.sum(np.log(1.0 - f64(action) ** 2 + 1e-6), axis=-1)
    elif kind != "gaussian":
        raise ValueError(kind)
    return bonus


# ------------------------------------------------- the published policy losses
#
# Each returns the per-example loss [T, B] (before rho_mean) from raw, log_std,
# eps [T, B, A], q: action [T, B, A] -> [T, B], prior mean and std [T, B, A] and
# the scales S_Q, S_K. log_std is already bounded.


def tdmpc2(raw, log_std, eps, q, scale_q, alpha=1e-4):
    action, _, _ = squash("tanh", raw, log_std, eps)
    bonus = entropy_bonus("gaussian", action, log_std, eps)
    return -q(action) / scale_q - alpha * bonus


def tdmpc_square(raw, log_std, eps, q, prior_mean, prior_std, scale_q, alpha=1e-4):
    """Cross-entropy at one sample, A^2/61, prior std >= .05, off until S_Q > 2."""
    action, _, _ = squash("tanh", raw, log_std, eps)
    size = action.shape[-1]
    cross = -gaussian_log_prob(action, prior_mean, np.maximum(f64(prior_std), 0.05))
    gate = 1.0 if scale_q > 2.0 else 0.0
    bonus = entropy_bonus("squashed", action, log_std, eps)
    return -q(action) / scale_q + gate * size**2 / 61.0 * cross / scale_q - alpha * bonus


def bmpc(raw, log_std, eps, prior_mean, prior_std, scale_kl, alpha=1e-4):
    """Reverse KL averaged over dimensions; no value term."""
    action, mean, std = squash("clip", raw, log_std, eps)
    kl = np.mean(gaussian_kl(mean, std, prior_mean, prior_std), axis=-1)
    return kl / scale_kl - alpha * entropy_bonus("gaussian", action, log_std, eps)


bmpc_v3 = bmpc  # only the value learning differs: Q, mean of 2


def boom_coefficient(size):
    """lambda A^2 per summed dimension."""
    return size**2 / (1000.0 if 24 <= size <= 48 else 50.0)


def boom(raw, log_std, eps, q, prior_mean, scale_q, frozen_std=None, frozen_q=None, alpha=1e-4):
    """-log N(a; mu_p, max(sg sigma, .05)), weighted by softmax_b(Q/S_Q).

    The weights sum to one over b and the prior term is *summed* over b; they
    appear here times B so that the mean over b is the loss; Q = -inf leaves a state out.
    frozen_std [T, B, A] and frozen_q [T, B] stand for the stopped sigma and the
    stopped Q of the weights where a derivative is taken.
    """
    action, _, std = squash("tanh", raw, log_std, eps)
    value = q(action)
    fixed = np.maximum(std if frozen_std is None else f64(frozen_std), 0.05)
    ranked = value if frozen_q is None else f64(frozen_q)
    weight = np.exp(log_softmax(ranked / scale_q))
    weight = weight * np.sum(np.isfinite(ranked), axis=-1, keepdims=True)
    prior = -gaussian_log_prob(action, prior_mean, fixed)
    coefficient = boom_coefficient(action.shape[-1]) if scale_q > 2.0 else 0.0
    bonus = entropy_bonus("squashed", action, log_std, eps)
    return -value / scale_q + coefficient * weight * prior / scale_q - alpha * bonus


def po_mpc_direct(
    raw, log_std, eps, q, prior_mean, prior_std, scale_q, scale_kl, lambda_=1.0, alpha=1e-4,
    offset=None,
):  # fmt: skip
    """-Q/S_Q + lambda sum_dims KL(pi || record)/S_K - alpha entropy; offset as in squash."""
    action, mean, std = squash("clip", raw, log_std, eps, offset)
    kl = np.sum(gaussian_kl(mean, std, prior_mean, prior_std), axis=-1)
    bonus = entropy_bonus("gaussian", action, log_std, eps)
    return -q(action) / scale_q + lambda_ * kl / scale_kl - alpha * bonus


def po_mpc_learned(raw, log_std, eps, q, phi_raw, phi_log_std, *scales_and_rest, **rest):
    """As po_mpc_direct with the learned prior N(tanh phi_raw, exp phi_log_std) stopped."""
    mean, std = np.tanh(f64(phi_raw)), np.exp(f64(phi_log_std))
    return po_mpc_direct(raw, log_std, eps, q, mean, std, *scales_and_rest, **rest)


def learned_prior_fit(phi_raw, phi_log_std, record_mean, record_std, scale_phi, kind="reverse"):
    """'reverse': KL(pi_phi || record); 'forward': KL(record || pi_phi); summed dims."""
    mean, std = np.tanh(f64(phi_raw)), np.exp(f64(phi_log_std))
    if kind == "reverse":
        kl = gaussian_kl(mean, std, record_mean, record_std)
    elif kind == "forward":
        kl = gaussian_kl(record_mean, record_std, mean, std)
    else:
        raise ValueError(kind)
    return np.sum(kl, axis=-1) / scale_phi


# ------------------------------------------------------------------ gradients


def numerical_gradient(f, x, h=1e-6):
    """Central differences of the scalar f at x [...] -> [...]."""
    x = f64(x)
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += h
        down[index] -= h
        gradient[index] = (f(up) - f(down)) / (2.0 * h)
    return gradient
