// Creates, lists, updates and misuses books; prints what came back as one line of JSON.
// node call.js ADDRESS FOLDER_OF_THE_PROTO FOLDER_OF_GOOGLES_PROTOS
import grpc from '@grpc/grpc-js';
import protoLoader from '@grpc/proto-loader';

const [address, ...includeDirs] = process.argv.slice(2);
const load = (...files) =>
  grpc.loadPackageDefinition(protoLoader.loadSync(files, { includeDirs, longs: String, keepCase: true, oneofs: true }));
const { bookstore } = load('bookstore/v1/books.proto');
const rpc = protoLoader.loadSync(['google/rpc/status.proto', 'google/rpc/error_details.proto'], { includeDirs });
const client = new bookstore.v1.BookService(address, grpc.credentials.createInsecure());

const call = (method, request, metadata = new grpc.Metadata()) =>
  new Promise((resolve, reject) =>
    client[method](request, metadata, { deadline: Date.now() + 30_000 }, (error, response) =>
      error ? reject(error) : resolve(response)));

const detailsOf = (error) => {
  const [bytes] = error.metadata.get('grpc-status-details-bin');
  const { details } = rpc['google.rpc.Status'].deserialize(bytes);
  return Object.fromEntries(details.map(({ type_url, typeUrl, value }) => {
    const name = (type_url ?? typeUrl).split('/').pop();
    return [name, rpc[name].deserialize(value)];
  }));
};

const failureOf = (promise) =>
  promise.then(
    () => null,
    (error) => ({
      code: grpc.status[error.code],
      message: error.details,
      requestId: error.metadata.get('x-request-id')[0],
      details: detailsOf(error),
    }));

const created = await call('CreateBook', { book: { name: 'Año Nuevo 元旦', author: 'Nobody', release_year: 0 } });
const updated = await call('UpdateBook', { book: { id: created.id, author: 'Somebody' }, update_mask: { paths: ['author'] } });
const metadata = new grpc.Metadata();
metadata.set('x-request-id', 'from-node');
const result = {
  created,
  updated,
  read: await call('GetBook', { id: created.id }),
  listed: await call('ListBooks', { filter: 'name:"AÑO NUEVO"', page_size: 10 }),
  invalid: await failureOf(call('CreateBook', { book: { name: ' ', author: 'A' } }, metadata)),
  missing: await failureOf(call('GetBook', { id: '9223372036854775807' })),
};
await call('DeleteBook', { id: created.id });
console.log(JSON.stringify(result));
client.close();
