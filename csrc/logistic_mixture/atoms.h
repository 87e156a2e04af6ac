// Atoms: components that put all their probability on one byte level, the same in all colours.
#pragma once

#include "logistic_mixture.h"

namespace dsmooth {

// The byte level that all colours of a pixel have; a number that is none where they differ.
template <class M, int C>
DSMOOTH_INLINE typename M::V common_level(const typename M::V (&x)[C]) {
  using V = typename M::V;
  using T = typename M::Scalar;
  V level = M::round((x[0] + 1) * static_cast<T>(127.5));
  DSMOOTH_UNROLL
  for (int c = 1; c < C; ++c) {
    const V other = M::round((x[c] + 1) * static_cast<T>(127.5));
    level = M::select(other == level, level, M::splat(-1));
  }
  return level;
}

// The logit of the atom at a pixel's level, the only one that is not -inf in the joint; -inf if
// there is none. Shows every logit to see(V).
template <class M, class Load, class See>
DSMOOTH_INLINE typename M::V atom_joint(const LogisticMixtureArgs<typename M::Scalar>& args,
                                        typename M::V level, const Load& load, const See& see) {
  using T = typename M::Scalar;
  typename M::V joint = M::splat(-kInfinity);
  for (int64_t j = 0; j < args.n_atoms; ++j) {
    const typename M::V logit = load(args.n_mix + j);
    see(logit);
    joint = M::select(level == static_cast<T>(args.atoms[j]), logit, joint);
  }
  return joint;
}

// The gradient by the logit of every atom. Scales: d loss / d log_prob over the sum of the state.
template <class M, class Load, class Store>
DSMOOTH_INLINE void store_atoms(const LogisticMixtureArgs<typename M::Scalar>& args,
                                typename M::V level, typename M::V max_joint,
                                typename M::V scale_joint, typename M::V max_logit,
                                typename M::V scale_logit, const Load& load, const Store& store) {
  using V = typename M::V;
  using T = typename M::Scalar;
  const V joint = atom_joint<M>(args, level, load, [](V) {});
  const V responsibility = M::exp(joint - max_joint) * scale_joint;
  for (int64_t j = 0; j < args.n_atoms; ++j) {
    const V weight = M::exp(load(args.n_mix + j) - max_logit) * scale_logit;
    const auto is_here = level == static_cast<T>(args.atoms[j]);
    store(args.n_mix + j, M::select(is_here, responsibility, M::splat(0)) - weight);
  }
}

}  // namespace dsmooth
