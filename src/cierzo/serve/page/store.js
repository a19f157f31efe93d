// Conversations in this browser (IndexedDB): `heads` for the list, `whole` for the rest.

let opened;
const others = new BroadcastChannel("cierzo");

function open() {
  opened ??= new Promise((resolve, reject) => {
    const asked = indexedDB.open("cierzo", 1);
    asked.onupgradeneeded = () => {
      asked.result.createObjectStore("heads", { keyPath: "id" });
      asked.result.createObjectStore("whole", { keyPath: "id" });
    };
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });
  return opened;
}

async function within(mode, work) {
  const transaction = (await open()).transaction(["heads", "whole"], mode);
  const result = work(transaction.objectStore("heads"), transaction.objectStore("whole"));
  await new Promise((resolve, reject) => {
    transaction.oncomplete = resolve;
    transaction.onabort = () => reject(transaction.error);
  });
  if (mode === "readwrite") others.postMessage("changed");
  return result?.result;
}

export const heads = async () =>
  (await within("readonly", (heads) => heads.getAll())).sort((one, other) => other.updated - one.updated);
export const get = (id) => within("readonly", (_, whole) => whole.get(id));
export const all = () => within("readonly", (_, whole) => whole.getAll());

export const put = (conversation) =>
  within("readwrite", (heads, whole) => {
    const { id, title, updated } = conversation;
    heads.put({ id, title, updated });
    whole.put(conversation);
  });

export const remove = (id) =>
  within("readwrite", (heads, whole) => {
    heads.delete(id);
    whole.delete(id);
  });

/** Ids of the conversations in which every word of `text` occurs. */
export async function search(text) {
  const words = text.toLocaleLowerCase().split(/\s+/).filter(Boolean);
  const found = (await all()).filter(({ title, system, nodes }) => {
    const whole = [title, system, ...Object.values(nodes).map((node) => node.content)].join("\n").toLocaleLowerCase();
    return words.every((word) => whole.includes(word));
  });
  return new Set(found.map(({ id }) => id));
}

/** Call `told` when another tab changed something. */
export const watch = (told) => others.addEventListener("message", told);
