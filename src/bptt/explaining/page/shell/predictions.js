// What was predicted, by scene: {scene: {first, last, right}}, indices of the first and the latest choice and of the right one when
// it was made. In the address: "fold.0.1.1,map.2.2.1".

const ONE = /^([a-z]+)\.(\d)\.(\d)\.(\d)$/;

export const predictions = {
  initial: {},
  encode: (made) =>
    Object.entries(made)
      .map(([scene, { first, last, right }]) => [scene, first, last, right].join("."))
      .join(","),
  decode(text) {
    const parts = text === "" ? [] : text.split(",").map((part) => part.match(ONE));
    if (parts.includes(null)) return undefined;
    return Object.fromEntries(
      parts.map(([, scene, ...indices]) => {
        const [first, last, right] = indices.map(Number);
        return [scene, { first, last, right }];
      }),
    );
  },
};

// The patch of the state when `choice` is predicted in `scene` and `right` is right.
export function predicted({ predictions: made }, scene, choice, right) {
  return { predictions: { ...made, [scene]: { first: made[scene]?.first ?? choice, last: choice, right } } };
}

// {asked, predicted, right: at the first choice} over these scenes.
export function score({ predictions: made }, scenes) {
  const known = scenes.map((scene) => made[scene]).filter(Boolean);
  return {
    asked: scenes.length,
    predicted: known.length,
    right: known.filter(({ first, right }) => first === right).length,
  };
}
