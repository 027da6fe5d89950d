// Calls every RPC from CALLERS callers until standard input ends. Prints "calling" after a first round, and at the end
// the calls, the failures, and the books that stay.
// node on_and_on.js TARGET FOLDER_OF_THE_PROTO FOLDER_OF_GOOGLES_PROTOS RUN CALLERS
import grpc from '@grpc/grpc-js';
import protoLoader from '@grpc/proto-loader';

const [target, protos, googleProtos, run, callers] = process.argv.slice(2);
const options = { includeDirs: [protos, googleProtos], longs: String, keepCase: true };
const { bookstore } = grpc.loadPackageDefinition(protoLoader.loadSync('bookstore/v1/books.proto', options));
const client = new bookstore.v1.BookService(target, grpc.credentials.createInsecure());
const bytes = (value) => value;
const send = {
  Check: (request, options, done) =>
    client.makeUnaryRequest('/grpc.health.v1.Health/Check', bytes, bytes, Buffer.alloc(0), options, done),
};

let isOver = false;
process.stdin.resume().on('end', () => { isOver = true; });
const tally = { calls: 0, failures: {}, slowest_seconds: 0 };
const kept = new Map();

const call = async (method, request) => {
  const began = Date.now();
  tally.calls += 1;
  try {
    return await new Promise((resolve, reject) =>
      (send[method] ?? client[method].bind(client))(request, { deadline: began + 30_000 }, (error, response) =>
        error ? reject(error) : resolve(response)));
  } catch (error) {
    const failure = `${method} ${grpc.status[error.code]}: ${error.details}`;
    tally.failures[failure] = (tally.failures[failure] ?? 0) + 1;
    throw error;
  } finally {
    tally.slowest_seconds = Math.max(tally.slowest_seconds, (Date.now() - began) / 1_000);
  }
};
const bookOf = (name) => ({ name, author: 'Anon', release_year: 1 });

const callEach = async (name) => {
  const { id } = await call('CreateBook', { book: bookOf(name) });
  kept.set(name, 'Anon');
  await call('GetBook', { id });
  await call('UpdateBook', { book: { id, author: 'Somebody' } });
  kept.set(name, 'Somebody');
  await call('ListBooks', { page_size: 3 });
  await call('BatchGetBooks', { ids: [id] });
  const names = [`${name} a`, `${name} b`];
  const { books } = await call('BatchCreateBooks', { requests: names.map((name) => ({ book: bookOf(name) })) });
  names.forEach((name) => kept.set(name, 'Anon'));
  await call('Check');
  await call('DeleteBook', { id: books[0].id });
  kept.delete(names[0]);
};

await Promise.all(Array.from({ length: Number(callers) }, async (_, caller) => {
  for (let round = 0; !isOver; round++) {
    await callEach(`${run}${caller}-${round}`).catch(() => {});
    if (caller === 0 && round === 0) console.log('calling');
  }
}));
console.log(JSON.stringify({ ...tally, kept: [...kept] }));
client.close();
