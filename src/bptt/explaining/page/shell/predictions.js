// What was predicted, by scene. In the address: scene.first.last.right, "fold.0.1.1,map.2.2.1".

/** @import { Field, Prediction, Predictions } from "../types.d.ts" */

const ONE = /^([a-z]+)\.(\d)\.(\d)\.(\d)$/;

/** @type {Field<Predictions>} */
export const predictions = {
  initial: {},
  encode: (made) =>
    Object.entries(made)
      .map(([scene, { first, last, right }]) => [scene, first, last, right].join("."))
      .join(","),
  decode(text) {
    /** @type {Predictions} */
    const made = {};
    for (const part of text === "" ? [] : text.split(",")) {
      const found = part.match(ONE);
      if (!found) return undefined;
      const [first, last, right] = found.slice(2).map(Number);
      made[found[1]] = { first, last, right };
    }
    return made;
  },
};

/**
 * The patch of the state when `choice` is predicted in `scene` and `right` is right.
 * @type {(state: { predictions: Predictions }, scene: string, choice: number, right: number) => { predictions:
 *   Predictions }}
 */
export function predicted({ predictions: made }, scene, choice, right) {
  return { predictions: { ...made, [scene]: { first: made[scene]?.first ?? choice, last: choice, right } } };
}

/**
 * Of these scenes' questions: how many there are, how many were predicted, and how many of those right at the
 * first choice.
 * @type {(state: { predictions: Record<string, Prediction | undefined> }, scenes: string[]) =>
 *   { asked: number, predicted: number, right: number }}
 */
export function score({ predictions: made }, scenes) {
  const known = scenes.map((scene) => made[scene]).filter((one) => one !== undefined);
  return {
    asked: scenes.length,
    predicted: known.length,
    right: known.filter(({ first, right }) => first === right).length,
  };
}
